"""The HTTP interface: OpenAI's of videos, of which ``seed`` is an extension."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, BinaryIO

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..adapter import Adapter
from ..command_line import describe_error
from ..video.writing import part_path
from .queue import QueueFull, Video, VideoQueue
from .worker import Worker

MAX_PROMPT = 4000  # characters
MAX_UPLOAD = 2**25  # bytes of a request
MAX_IMAGE = 2**25  # pixels of an image, which may be few bytes
#: Seconds between looks at a video that grows.
POLL = 0.1


class VideoRequest(BaseModel):
    """What a client may ask for; None is the server's own."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    model: str | None = None
    seconds: float | None = Field(None, gt=0)
    size: str | None = Field(None, pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")
    seed: int | None = Field(None, ge=0, lt=2**63)


@dataclass
class Service:
    """The videos of a model: takes requests, and answers for what became of them."""

    chosen: Adapter  # the model with the settings that all videos share
    worker: Worker
    queue: VideoQueue
    max_queue: int  # videos that are not finished
    max_seconds: float
    max_pixels: int  # of a frame

    def create(self, request: VideoRequest, image: bytes | None = None) -> Video:
        """Check and queue a video; raises HTTPException."""
        model, id = self.chosen, f"video_{secrets.token_hex(12)}"
        if request.model not in (None, model.package):
            raise refusal("model", f"expected {model.package}, which this server has, got {request.model!r}.", 404)
        fps, (height, width) = model.video.fps, model.size
        if request.seconds is not None and request.seconds > self.max_seconds:
            raise refusal("seconds", f"expected at most {self.max_seconds:g}, got {request.seconds:g}.")
        frames = model.video.num_frames if request.seconds is None else max(1, round(request.seconds * fps))
        frames = model.fit_frames(frames, image is not None)
        words = [f"--prompt={request.prompt}", f"--num_frames={frames}"]
        if request.size is not None:
            width, height = map(int, request.size.split("x"))
            if width * height > self.max_pixels:
                raise refusal("size", f"expected at most {self.max_pixels} pixels, got {request.size}.")
            words += [f"--{name}={side}" for name, side in zip(model.size_options, (height, width), strict=True)]
        words += [] if request.seed is None else [f"--seed={request.seed}"]
        upload = self.worker.folder / id / "input_reference"
        try:
            if image is not None:
                try:
                    with Image.open(BytesIO(image)) as opened:
                        pixels = opened.width * opened.height
                except Exception:  # the check of all options says what it is
                    pixels = 0
                if pixels > MAX_IMAGE:
                    raise refusal("input_reference", f"expected at most {MAX_IMAGE} pixels, got {pixels}; reduce it.")
                upload.parent.mkdir()
                upload.write_bytes(image)
                words.append(f"--image={upload}")
            try:
                self.worker.prepare(*words, "--dry_run")
            except ValueError as error:
                option = re.match(r"\w*", str(error))[0]
                asked = {**dict.fromkeys(model.size_options, "size"), "image": "input_reference"}
                asked |= dict.fromkeys(("num_frames", "overlap_history"), "seconds")
                text = describe_error(error).replace(str(upload), upload.name)
                raise refusal(asked.get(option, option if option == "prompt" else None), text) from error
            video = Video(id=id, prompt=request.prompt, words=words, seconds=frames / fps, size=f"{width}x{height}")
            video = self.queue.add(video, self.max_queue)
        except QueueFull as error:
            self.worker.remove_files(id)
            raise refusal(None, f"{self.max_queue} videos wait already; try again later.", 429) from error
        except BaseException:
            self.worker.remove_files(id)
            raise
        self.worker.wake()
        return video

    def find(self, id: str) -> Video:
        """The video of an id; raises HTTPException."""
        if (video := self.queue.get(id)) is None:
            raise refusal("video_id", "expected the id of a video of this server, got another.", 404)
        return video

    def describe(self, video: Video) -> dict[str, Any]:
        """A video as OpenAI's interface shows it."""
        error = {"code": "video_generation_failed", "message": video.error}
        return {
            "id": video.id,
            "object": "video",
            "model": self.chosen.package,
            "status": video.status,
            "progress": video.progress,
            "created_at": video.created_at,
            "completed_at": video.completed_at,
            "expires_at": None,
            "prompt": video.prompt,
            "seconds": f"{video.seconds:g}",
            "size": video.size,
            "remixed_from_video_id": None,
            "error": error if video.error else None,
        }

    async def follow(self, file: BinaryIO, id: str) -> AsyncIterator[bytes]:
        """Yield the content of a growing file until its video is finished or removed, and close it.

        RuntimeError for a video that was not finished, so that the client does not take its file for whole. Waits
        without a thread: clients that read slow videos would use up those of all other requests.
        """
        with file:
            while True:
                grows = (video := self.queue.get(id)) is not None and video.status == "in_progress"
                while content := file.read(2**16):
                    yield content
                if not grows:
                    if video is None or video.status != "completed":
                        raise RuntimeError(f"{id} was not finished")  # breaks the transfer off
                    return
                await asyncio.sleep(POLL)


def make_app(service: Service, hosts: list[str], key: str | None = None) -> FastAPI:
    """Make the application; its life is that of the worker.

    ``hosts`` are the names by which clients may call the server, ``key`` what they must send.
    """

    def check_access(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise refusal(None, "expected the server's API key as a bearer token, got another or none.", 401)
        if key is None and "origin" in request.headers:
            raise refusal(None, "expected no page of another server as the sender; set FLOWCACHE_API_KEY.", 403)

    @asynccontextmanager
    async def life(_: FastAPI):
        service.worker.start()
        yield
        await run_in_threadpool(service.worker.stop)

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(check_access)])
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(StarletteHTTPException)
    async def answer(_: Request, error: StarletteHTTPException) -> JSONResponse:
        detail = error.detail if isinstance(error.detail, dict) else {"message": error.detail}
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        content = {"message": None, "type": kind, "param": None, "code": None, **detail}
        return JSONResponse({"error": content}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await answer(request, invalid(error.errors()[0]))

    @app.exception_handler(Exception)
    async def answer_failure(request: Request, _: Exception) -> JSONResponse:  # which is logged all the same
        return await answer(request, refusal(None, "the server failed; its log says why.", 500))

    @app.post("/v1/videos")
    async def create(request: Request) -> dict[str, Any]:
        asked, image = await read_request(request)
        return service.describe(await run_in_threadpool(service.create, asked, image))

    @app.get("/v1/videos")
    def list_videos(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: str | None = None,
        order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
    ) -> dict[str, Any]:
        found = service.queue.list(limit + 1, after, order == "asc")
        shown = [service.describe(video) for video in found[:limit]]
        ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
        return {"object": "list", "data": shown, "has_more": len(found) > limit, **ends}

    @app.get("/v1/videos/{id}")
    def show(id: str) -> dict[str, Any]:
        return service.describe(service.find(id))

    @app.get("/v1/videos/{id}/content")
    def content(id: str, variant: Annotated[str, Query(pattern="^video$")] = "video"):
        video = service.find(id)
        path = service.worker.video_path(video.id)
        if video.status == "in_progress":
            try:
                return StreamingResponse(service.follow(part_path(path).open("rb"), video.id), media_type="video/mp4")
            except FileNotFoundError:  # no frames yet, or all of them
                pass
        if path.exists():
            return FileResponse(path, media_type="video/mp4", filename=f"{video.id}.mp4")
        if video.status == "completed":
            raise refusal("video_id", "expected a video whose file is there, got one whose file was removed.", 410)
        raise refusal("video_id", f"expected a video with frames, got one that is {video.status}.", 409)

    @app.delete("/v1/videos/{id}")
    def delete(id: str) -> dict[str, Any]:
        video = service.find(id)
        service.queue.remove(video.id)
        service.worker.remove_files(video.id)
        return {"id": video.id, "object": "video.deleted", "deleted": True}

    return app


async def read_request(request: Request) -> tuple[VideoRequest, bytes | None]:
    """Read a request in JSON or as a form, and the bytes of its image; raises HTTPException."""
    length = request.headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,12}", length) or "transfer-encoding" in request.headers:  # which overrides the length
        raise refusal(None, "expected a Content-Length alone, got none or a Transfer-Encoding.", 411)
    if int(length) > MAX_UPLOAD:
        raise refusal("input_reference", f"expected a request of at most {MAX_UPLOAD} bytes, got {length}.", 413)
    image = None
    try:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with request.form(max_files=1, max_fields=20) as form:
                values: dict[str, Any] = dict(form)
                if isinstance(given := values.pop("input_reference", None), UploadFile):
                    image = await given.read()
                elif given is not None:
                    raise refusal("input_reference", "expected an image as a file, got text.")
                return VideoRequest.model_validate(values), image
        return VideoRequest.model_validate_json(await request.body()), None
    except ValidationError as error:
        raise invalid(error.errors()[0]) from error


def refusal(param: str | None, message: str, status: int = 400) -> HTTPException:
    text = message if param is None else f"{param}: {message}"
    return HTTPException(status, {"message": text, "param": param, "code": None})


def invalid(error: dict[str, Any]) -> HTTPException:
    """The refusal of a value, from pydantic's description of what is wrong."""
    param = str(error["loc"][-1]) if error["loc"] else None
    return refusal(param, f"{error['msg']}.")

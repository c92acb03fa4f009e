"""A small host of ComfyUI's nodes: its documented contract, without ComfyUI."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from reference import ROOT

FOLDER = ROOT / "integrations" / "comfyui"
#: Python types of ComfyUI's plain inputs.
PLAIN = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}


class Interrupted(Exception):
    """Raised by ``throw_exception_if_processing_interrupted`` after a number of calls."""


class LoadImage:
    """The input of ComfyUI's own node, which reads a file of its input folder."""

    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "load_image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {})}}

    def load_image(self, image):
        return torch.full((1, 48, 80, 3), 0.2), torch.zeros(1, 48, 80)


class Host:
    """Stands for ComfyUI's modules, loads the folder of nodes as ComfyUI does, and runs workflows in API format."""

    def __init__(self, monkeypatch, output: Path, steps_until_interrupt: int | None = None) -> None:
        self.output, self.previews, self.left = output, [], steps_until_interrupt
        comfy = ModuleType("comfy")
        comfy.model_management = SimpleNamespace(
            get_torch_device=lambda: torch.device("cpu"), throw_exception_if_processing_interrupted=self._count
        )
        comfy.utils = SimpleNamespace(ProgressBar=lambda total: SimpleNamespace(update_absolute=self._show))
        paths = SimpleNamespace(get_output_directory=lambda: str(output), get_save_image_path=self._choose_path)
        modules = {"comfy": comfy, "comfy.model_management": comfy.model_management, "comfy.utils": comfy.utils}
        for name, module in {**modules, "folder_paths": paths}.items():
            monkeypatch.setitem(sys.modules, name, module)
        name = f"comfyui_nodes_{id(self)}"  # of its own, as the nodes import the modules above
        spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
        package = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, package)
        spec.loader.exec_module(package)
        self.nodes = {**package.NODE_CLASS_MAPPINGS, "LoadImage": LoadImage}
        self.titles = package.NODE_DISPLAY_NAME_MAPPINGS

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Check and run a workflow; returns what its output nodes show, by their ids."""
        for node in workflow.values():
            self._check(node, workflow)
        made: dict[str, Any] = {}
        with torch.inference_mode():
            for name, node in workflow.items():
                if getattr(self.nodes[node["class_type"]], "OUTPUT_NODE", False):
                    self._make(name, workflow, made)
        return {name: shown["ui"] for name, shown in made.items() if isinstance(shown, dict)}

    def _make(self, name: str, workflow: dict[str, Any], made: dict[str, Any]) -> Any:
        if name not in made:
            kind, given = self.nodes[workflow[name]["class_type"]], {}
            for key, value in workflow[name]["inputs"].items():
                given[key] = self._make(value[0], workflow, made)[value[1]] if isinstance(value, list) else value
            made[name] = getattr(kind(), kind.FUNCTION)(**given)
        return made[name]

    def _check(self, node: dict[str, Any], workflow: dict[str, Any]) -> None:
        kind, given = self.nodes[node["class_type"]], node["inputs"]
        types = kind.INPUT_TYPES()
        known = {**types["required"], **types.get("optional", {})}
        assert types["required"].keys() <= given.keys() <= known.keys()
        for name, value in given.items():
            wanted, limits = known[name][0], (known[name][1:] or ({},))[0]
            if isinstance(value, list):
                source = self.nodes[workflow[value[0]]["class_type"]]
                assert source.RETURN_TYPES[value[1]] == wanted
            elif isinstance(wanted, list):
                assert value in wanted
            else:
                assert isinstance(value, PLAIN[wanted])
                assert limits.get("min", value) <= value <= limits.get("max", value)
        if hasattr(kind, "VALIDATE_INPUTS"):
            asked = kind.VALIDATE_INPUTS.__code__
            names = asked.co_varnames[1 : asked.co_argcount]
            # What another node gives is not known yet.
            typed = {name: None if isinstance(value, list) else value for name, value in given.items()}
            answer = kind.VALIDATE_INPUTS(**{name: typed[name] for name in names if name in typed})
            if answer is not True:
                raise ValueError(answer)

    def _count(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Interrupted

    def _show(self, value: int, total: int, preview: tuple) -> None:
        self.previews.append((value, preview[1].size))

    def _choose_path(self, prefix: str, folder: str, width: int, height: int) -> tuple[str, str, int, str, str]:
        place = Path(folder, prefix).parent
        place.mkdir(parents=True, exist_ok=True)
        return str(place), Path(prefix).name, 1, str(Path(prefix).parent), prefix

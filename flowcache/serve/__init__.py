"""Videos over HTTP, by the interface of OpenAI's: a queue on disk, and one worker that makes a video at a time."""

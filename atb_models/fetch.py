"""Finds the folder that the user named as --model_path, or downloads a checkpoint if asked to."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from atb_models.errors import CheckpointError, ConfigError
from atb_models.files import expanded, read_text
from atb_models.json_file import is_there
from atb_models.published import NAMES, folder_of, full_name, similar_names, source
from atb_models.wording import install_command, message_lines

logger = logging.getLogger(__name__)

KNOWN_MODELS = (*NAMES, "xverse/XVERSE-MoE-A4.2B-Chat")
EXAMPLES = ("deepseek-ai/deepseek-moe-16b-chat", "Qwen/Qwen3-30B-A3B")  # where nothing tells which model is meant
HUBS = {"modelscope": "modelscope", "huggingface": "huggingface_hub"}  # name -> Python package, in order of preference
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def repository_name(text: str) -> str | None:
    """The hub's name of a model: org/name unchanged, or that of a known model by its last part."""
    last = text.rstrip("/").rsplit("/", 1)[-1]
    known = [name for name in KNOWN_MODELS if name.rsplit("/", 1)[1].lower() == last.lower()]
    if known:
        return known[0]
    return text if _REPOSITORY.fullmatch(text) else None


def model_folder(path: Path | str) -> Path:
    """The folder with config.json for a folder that the user named.

    For a folder of the Hugging Face cache (models--org--name): the snapshot that its refs/main names, or its only one.
    Raises ConfigError, with the commands that fetch the model, if there is no such folder.
    """
    folder = expanded(path)
    if folder.is_file():
        raise ConfigError(f"model_path {path} is a file; give the folder that holds it: {folder.parent}")
    if not folder.is_dir():
        raise ConfigError(_how_to_fetch(str(path), folder))
    if _holds_config(folder):
        return folder
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if snapshots.is_dir():
        return _snapshot(snapshots)
    inside = sorted(child.name for child in folder.iterdir() if child.is_dir() and _holds_config(child))
    hint = f"give one of the folders in it: {', '.join(inside[:6])}" if inside else "nor does any folder in it"
    raise ConfigError(f"model_path {path} holds no config.json; {hint}")


def look_folder(path: str) -> Path:
    """The folder with config.json for what is only looked at: the user's own, else this package's for the name of a
    published model, which the log says.

    Raises ConfigError, with the names that are known, where there is neither.
    """
    folder = expanded(path)
    if folder.exists():
        return model_folder(path)
    name = full_name(path)
    if name is None:
        raise ConfigError(_names_known(path, folder))
    logger.info("%s: the config.json that comes with this package, from %s", name, source(name))
    return folder_of(name)


def download(name: str, *, hub: str | None = None, folder: Path | str | None = None) -> Path:
    """Download a model from ModelScope or Hugging Face -> its folder. Repeating it continues an interrupted download.

    name: org/name, or a known model's last part. hub: "modelscope" or "huggingface"; None: the first whose package is
    installed. folder: None: the hub's own cache. Raises ConfigError for an unknown name or hub or a package that is not
    installed, CheckpointError with the cause if the download fails.
    """
    repository = repository_name(name)
    if repository is None:
        raise ConfigError(f"{name!r} is no model name such as {EXAMPLES[0]}, so it cannot be downloaded")
    if hub is not None and hub not in HUBS:
        raise ConfigError(f"hub {hub!r} is unknown, but only {', '.join(HUBS)} are supported")
    chosen, module = _hub_module(hub)
    fetch: Callable[..., str] = module.snapshot_download
    try:
        found = fetch(repository, **({} if folder is None else {"local_dir": str(folder)}))
    except KeyboardInterrupt:
        raise
    except Exception as error:  # each hub and its HTTP library has exceptions of its own
        cause = message_lines(f"{type(error).__name__}: {error}")[0]
        raise CheckpointError(
            f"{repository} could not be downloaded with {HUBS[chosen]}: {cause}. Check the network, proxy or mirror "
            "(HF_ENDPOINT, HTTPS_PROXY), or fetch it on another machine and give --model_path its folder"
        ) from error
    return model_folder(found)


def _hub_module(hub: str | None) -> tuple[str, ModuleType]:
    """The chosen hub's package, or the first that is installed."""
    names = tuple(HUBS) if hub is None else (hub,)
    for name in names:
        try:
            return name, importlib.import_module(HUBS[name])
        except ModuleNotFoundError:
            continue
    packages = " or ".join(HUBS[name] for name in names)
    raise ConfigError(f"downloading needs {packages}, which is not installed: {install_command('hub')}")


def _holds_config(folder: Path) -> bool:
    return is_there(folder / "config.json")


def _snapshot(snapshots: Path) -> Path:
    """The snapshot that refs/main names, else the only one."""
    main = snapshots.parent / "refs" / "main"
    if main.is_file():
        named = snapshots / read_text(main, error=CheckpointError).strip()
        if _holds_config(named):
            return named
    complete = sorted(child for child in snapshots.iterdir() if _holds_config(child))
    if len(complete) == 1:
        return complete[0]
    if complete:
        raise ConfigError(f"{snapshots} holds several checkpoints; give one: {', '.join(map(str, complete))}")
    raise ConfigError(f"{snapshots} holds no finished download: no folder in it has a config.json; fetch it again")


def _how_to_fetch(typed: str, folder: Path) -> str:
    """The error for a path: why it is refused, and the commands that fetch the model."""
    repository = repository_name(typed)
    why = f"model_path {typed} is no folder (looked for {folder.absolute()})"
    names = (similar_names(typed) or EXAMPLES) if repository is None else (repository,)
    return _commands(why, names, folder if repository is not None and typed != repository else None)


def _names_known(typed: str, folder: Path) -> str:
    """The error for what is neither a folder nor the name of a published model."""
    similar = similar_names(typed)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else "."
    why = f"model_path {typed} is no folder (looked for {folder.absolute()}), nor the name of a known model{hint}"
    return "\n  ".join([f"{why} The names that are known:", *NAMES])


def needs_weights(name: str) -> str:
    """The error of a script that needs a model's weights and was started without them."""
    return _commands(f"no model path, but this script needs the weights of {name}", (name,), None)


def _commands(why: str, names: Sequence[str], folder: Path | None) -> str:
    """`why` there is no model, and the commands that fetch the named ones, to `folder` or a folder of the same name."""
    lines = [f"{why}. To fetch the weights, either of"]
    for name in names:
        target = folder or Path(name.rsplit("/", 1)[1])
        lines.append(f"  modelscope download --model {name} --local_dir '{target}'")
        lines.append(f"  hf download {name} --local-dir '{target}'")
    again = f"repeat the command with --model_path {names[0]} --download ({install_command('hub')})"
    lines.append(f"and give that folder, or {again}")
    return "\n".join(lines)

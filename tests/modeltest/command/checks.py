"""What the words of a command must agree with: the checkpoint and the user's devices."""

from __future__ import annotations

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.json_file import read_json
from atb_models.models.families import FAMILIES
from modeltest.command.cases import Run
from modeltest.command.families import MODEL_TYPES


def check_family(run: Run) -> None:
    """Raises ConfigError where the checkpoint is of another family than model_name says."""
    found = read_json(run.weight_dir / "config.json").get("model_type")
    wanted = MODEL_TYPES[run.model]
    if found not in wanted:
        names = [name for name, types in MODEL_TYPES.items() if found in types]
        remedy = f"say {' or '.join(names)}" if names else f"only {', '.join(FAMILIES)} are supported"
        raise ConfigError(
            f"model_name {run.model} is for model_type {' or '.join(map(repr, wanted))}, but {run.weight_dir} has"
            f" {found!r}; {remedy}"
        )


def check_devices(run: Run) -> None:
    """Raises ConfigError, with both numbers, where the user's list has not one device for each rank of this host.

    Without a list they take 0, 1, 2 ..., of which `LLM` sees whether they exist. Under a torchrun of the user's, also
    where that has started another number of ranks.
    """
    world = env.get("WORLD_SIZE")
    if run.nodes is None and world not in (None, run.chips):
        raise ConfigError(f"chip_num {run.chips} does not match torchrun's WORLD_SIZE {world}; make them equal")
    ranks = run.nodes.per_node if run.nodes else run.chips
    listed = env.get("ASCEND_RT_VISIBLE_DEVICES")
    if listed is not None and len(listed) != ranks:
        what = f"chip_num {ranks}" if run.nodes is None else f"{ranks} ranks of each host (world_size / node_num)"
        raise ConfigError(
            f"{what} contradicts ASCEND_RT_VISIBLE_DEVICES={','.join(map(str, listed))}, which names {len(listed)}"
            " devices; change one"
        )

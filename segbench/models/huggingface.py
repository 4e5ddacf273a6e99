"""`hf:segformer`, `hf:OWNER/NAME`, `hf:./folder`: Transformers' networks for semantic segmentation.

A bare name is one of the library's model types that has such a head, built from its configuration with random weights;
its options are the configuration's own fields. A name with a slash is a model of the hub, or a folder that
`save_pretrained` wrote: its configuration and weights are loaded (`revision` says which), what the file lacks is drawn
at random, and so is the last layer where it is of another number of classes. Code in a repository is never run, nor a
kernel that its configuration names.

Input: with loaded weights, what the image processor beside them says (order, range, mean and deviation; its resizing
and cropping are not done); else RGB with ImageNet's mean and deviation.

Departures: those of external.py. Networks that classify masks instead of pixels (MaskFormer, Mask2Former, OneFormer)
are not among these types. Vision transformers with a table of positions (BEiT, DPT) take one image size, `image_size`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from segbench.errors import ModelError
from segbench.models.build import checked_options
from segbench.models.external import External, member_of
from segbench.models.input import IMAGENET, Input

# Ours to set: the images have three channels, and no auxiliary head is trained.
SET_HERE = {"num_channels": 3, "use_auxiliary_head": False}


def huggingface(member: str, num_classes: int, /, **options: Any) -> External:
    """A model type of Transformers by name, or a model of the hub or a folder by path.

    Raises `ModelError` for a type or option that the library does not have, and when it is not installed.
    """
    library = _library()
    types = {config.model_type: config for config in library.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING}
    if "/" in member:
        return _pretrained(library, types, member, num_classes, options)
    found = member_of("hf", member, types)
    given = checked_options(f"hf:{member}", _options(library, found), options)
    with _in_one_line(f"hf:{member}"):
        config = _configured(found(**given), num_classes)
    return External(library.AutoModelForSemanticSegmentation.from_config(config, trust_remote_code=False), IMAGENET)


def _library() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModelError("hf: needs Transformers, which is not installed; pip install 'segbench[hf]'") from error
    return transformers


def _options(library: ModuleType, config: Any) -> dict[str, Any]:
    """The fields that a configuration adds to the library's base; `_out_indices` is written without its underscore."""
    base = {field.name for field in fields(library.PreTrainedConfig)} | set(SET_HERE)
    return {field.name.removeprefix("_"): Any for field in fields(config) if field.name not in base}


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """A configuration's field of a wrong kind is the user's mistake, told in several lines by the library."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:
        raise ModelError(f'model "{name}": {" ".join(str(error).split())}') from error


def _configured(config: Any, num_classes: int) -> Any:
    """The configuration with what is ours to set."""
    for key, value in SET_HERE.items():
        if hasattr(config, key):
            setattr(config, key, value)
    config.num_labels = num_classes
    # A configuration may name a kernel of the hub for its attention, here and in what it nests: code that would be run.
    config._attn_implementation = None
    return config


def _pretrained(
    library: ModuleType, types: Mapping[str, Any], path: str, num_classes: int, options: Mapping[str, Any]
) -> External:
    name, revision = f"hf:{path}", options.get("revision", "main")
    checked_options(name, {"revision": str}, {"revision": revision})
    _check_folder(path)
    source = {"pretrained_model_name_or_path": path, "revision": revision, "trust_remote_code": False}
    with _in_one_line(name):
        found = type(library.AutoConfig.from_pretrained(**source))
    if types.get(found.model_type) is not found:
        raise ModelError(f'"{name}" is a {found.model_type}; allowed: {", ".join(sorted(types))}')
    given = checked_options(name, {"revision": str, **_options(library, found)}, options)
    with _in_one_line(name):
        config = _configured(library.AutoConfig.from_pretrained(**{**source, **given}), num_classes)
    networks = library.AutoModelForSemanticSegmentation
    # Nothing is read where nothing is computed; the library refuses it.
    if torch.get_default_device().type == "meta":
        return External(networks.from_config(config, trust_remote_code=False), IMAGENET)
    with _quiet():
        network, report = networks.from_pretrained(
            **source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32
        )
    _check_loaded(name, num_classes, network, report)
    return External(network, _input(library, source))


def _check_folder(path: str) -> None:
    """The library takes a folder that is not there for a name of the hub, and says that it is a bad one."""
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ModelError(f'"hf:{path}": there is no folder {path}; allowed: one that save_pretrained wrote')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bar and its report of what did not fit, which `_check_loaded` reads."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _check_loaded(name: str, num_classes: int, network: nn.Module, report: Mapping[str, Any]) -> None:
    """Only the layer of the classes may have another shape than its file; something must have come from the file."""
    for key, there, here in sorted(report["mismatched_keys"]):
        if tuple(here) != (num_classes, *there[1:]):
            raise ModelError(
                f'model "{name}": {key} is {tuple(there)} in its file and {tuple(here)} by its options; '
                "leave out the options that change a layer's shape"
            )
    if len(report["missing_keys"]) == len(network.state_dict()):
        raise ModelError(f'model "{name}": its file holds none of the weights of a network of this type')


def _input(library: ModuleType, source: Mapping[str, Any]) -> Input:
    """What the image processor beside the weights feeds them; ImageNet's where there is none."""
    from transformers.utils import cached_file

    place = {"path_or_repo_id": source["pretrained_model_name_or_path"], "revision": source["revision"]}
    if cached_file(filename="preprocessor_config.json", **place, _raise_exceptions_for_missing_entries=False) is None:
        return IMAGENET
    fed = library.AutoImageProcessor.from_pretrained(**source)
    scaled = fed.rescale_factor if fed.do_rescale else 1.0
    found = Input(order="bgr" if getattr(fed, "do_flip_channel_order", False) else "rgb", scale=scaled)
    return replace(found, mean=tuple(fed.image_mean), std=tuple(fed.image_std)) if fed.do_normalize else found

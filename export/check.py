"""Compares a checkpoint with what the decoder will ask for, before any work is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..errors import InputError
from .checkpoint import Checkpoint
from .config import EMBEDDING, ModelConfig
from .decoder import attention_names, mlp_names
from .shapes import linear_shapes, tensor_shapes

_NAMES_IN_A_MESSAGE = 4


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raise InputError unless the checkpoint has just the tensors that the decoder reads, in the right shapes.

    Linear layers may have biases. The tokenizer's ids must be rows of the embedding.
    """
    names = checkpoint.names()
    if config.num_hidden_layers > len(names):  # before a damaged number makes the lists below endless
        raise InputError(f"{config.num_hidden_layers} layers cannot be made of {len(names)} tensors; download it again")
    expected = tensor_shapes(config)
    missing = [name for name in expected if name not in set(names)]
    if missing:
        raise InputError(f"tensors are missing: {_some(missing)}; the checkpoint is incomplete or config.json is wrong")
    allowed = expected | optional_shapes(config)
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise InputError(
            f"nothing would read these tensors: {_some(unknown)}; the model computes more than is supported"
        )
    for name in names:
        if checkpoint.shape(name) != allowed[name]:
            raise InputError(
                f"tensor {name} must have the shape {list(allowed[name])}, it has {list(checkpoint.shape(name))}; "
                "config.json and the weights do not belong together"
            )
    _check_bias_keys(checkpoint, config, set(names))
    check_vocabulary(checkpoint.tokenizer_files()["tokenizer.json"], config)


def optional_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every bias that is read if it is there: one for each linear layer."""
    return {name.removesuffix("weight") + "bias": shape[:1] for name, shape in linear_shapes(config).items()}


def _check_bias_keys(checkpoint: Checkpoint, config: ModelConfig, names: set[str]) -> None:
    """Where config.json speaks of biases the tensors must agree: transformers goes by it, we go by the tensors."""
    firsts = {"attention_bias": attention_names(0)[0][0], "mlp_bias": mlp_names(0, config.layers[0].mlp)[0][0]}
    for key, weight in firsts.items():
        stated, part = checkpoint.config.get(key), weight.split(".")[3]
        if stated is None:
            continue
        wanted = [weight.removesuffix("weight") + "bias"] if stated else []
        wrong = [name for name in wanted if name not in names] or [
            name
            for name in names
            if not stated and name.endswith(".bias") and f".{part}." in name and ".layers." in name
        ]
        if wrong:
            found = "is missing" if stated else "is there"
            raise InputError(
                f"config.json says {key} = {json.dumps(stated)}, but the tensor {min(wrong)} {found}; correct one"
            )


def check_vocabulary(tokenizer_json: bytes, config: ModelConfig) -> None:
    """Raise InputError if the tokenizer can produce an id that has no row in the embedding."""
    largest = largest_token_id(json.loads(tokenizer_json))
    if largest >= config.vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {largest}, but {EMBEDDING} has only {config.vocab_size} rows; "
            "the tokenizer belongs to another model, or the embedding was not resized"
        )


def largest_token_id(tokenizer: Mapping[str, object]) -> int:
    """The largest id in the content of a tokenizer.json; raises InputError if there is no vocabulary."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or ()
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping) and isinstance(added, Sequence):
        ids = [*vocabulary.values(), *(token.get("id") for token in added if isinstance(token, Mapping))]
        if ids and all(isinstance(index, int) for index in ids):
            return int(max(ids))
    if isinstance(vocabulary, list) and vocabulary:  # Unigram: a list in the order of ids
        return len(vocabulary) - 1
    raise InputError("tokenizer.json has no vocabulary with ids; write it again with transformers' save_pretrained")


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(names[:_NAMES_IN_A_MESSAGE])
    more = len(names) - _NAMES_IN_A_MESSAGE
    return f"{listed} and {more} more" if more > 0 else listed

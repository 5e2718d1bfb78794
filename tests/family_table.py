"""The README's table of families, made from the tiny models that are tested on every target.

Run `python tests/family_table.py` to write it.
"""

import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- families:start -->", "<!-- families:end -->"


def families_table():
    """The table in Markdown: each family, its models, and what its tiny models have been tested with."""
    from pocketlm.export.families import FAMILIES
    from tiny_families import NAMES, canonical

    features = {"llama": {"rope scaling (linear, llama3)": None}}
    for name in NAMES:
        config, weights = canonical(name)
        features.setdefault(config.model_type, {}).update(dict.fromkeys(_features(config, weights)))
    rows = [f"| `{kind}` | {FAMILIES[kind].models} | {', '.join(features[kind])} |" for kind in FAMILIES]
    return "\n".join(["| model_type | models | what it has beyond Llama 2 |", "|---|---|---|", *rows])


def _features(config, weights):
    attentions = [layer.attention for layer in config.layers]
    mlps = [layer.mlp for layer in config.layers]
    first, ropes = attentions[0], {attention.rope for attention in attentions}
    turning = [rope for rope in ropes if rope is not None]
    yes = {
        "learned positions": config.learned_positions,
        "layer norm": config.norms.kind == "layer",
        "norms behind blocks": config.norms.after,
        "parallel blocks": config.parallel,
        "query and key norms": first.qk_norm is not None,
        "query, key and value biases": "model.layers.0.self_attn.q_proj.bias" in weights and config.norms.kind == "rms",
        "sliding window": any(attention.window for attention in attentions),
        "soft-caps": first.softcap is not None,
        "two rotations": len(turning) > 1,
        "layers without rotation": bool(turning) and None in ropes,
        "partial rotation": any(rope.rotated for rope in turning),
        "longrope": any(rope.divisors for rope in turning),
        "scaled embedding": config.embedding_scale != 1,
        "scaled residuals and logits": config.residual_scale != 1,
        "heads and widths by layer": len({(a.heads, a.kv_heads) for a in attentions}) > 1,
        "mixture of experts": any(mlp.experts for mlp in mlps),
        "no gate": not mlps[0].gated,
        "gelu": mlps[0].activation != "silu",
    }
    return [name for name, has in yes.items() if has] or ["nothing"]


def with_table(text):
    """The README with the table between its markers."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{families_table()}\n{END}{after}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")

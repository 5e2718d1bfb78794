"""Holding what an artifact gave against golden.json, which was written when it was exported."""

from __future__ import annotations

from dataclasses import replace

from .certificate import TargetCertificate
from .golden import Golden, replay_kl
from .judge import Judgement
from .thresholds import THRESHOLDS


def with_replay(
    judgement: Judgement, entry: str, *, golden: Golden, context: int, part: bool = False
) -> TargetCertificate:
    """The judgement's certificate, with a failure if the artifact's logits are not those of golden.json's ``entry``.

    context  tokens that pocketlm.json says the artifact's cache holds
    part     ``golden`` holds some of the file's sequences only: the tolerance was made for all, so their own noise
             floor counts if it is larger
    """
    certificate, expected = judgement.certificate, golden.targets.get(entry)
    if judgement.context not in (None, context):
        line = f"context: the artifact holds {judgement.context} tokens, pocketlm.json says {context}"
        certificate = replace(certificate, failures=(*certificate.failures, line))
    if judgement.shipped is None:
        return certificate
    if expected is None and not golden.targets:  # exported without a run (--certify identity)
        return certificate
    if expected is None:
        return replace(certificate, failures=(*certificate.failures, f"golden.json has nothing for {entry}"))
    kl, tolerance = replay_kl(expected["expected"], judgement.shipped), expected["tolerance_kl"]
    if part and certificate.runtime is not None:
        floor = certificate.runtime.noise_floor_kl or 0.0
        tolerance = max(tolerance, THRESHOLDS["runtime.noise_floors"].limit * floor)
    if not kl <= tolerance:
        line = f"golden replay: KL {kl:.3g} exceeds {tolerance:.3g}"
        certificate = replace(certificate, failures=(*certificate.failures, line))
    return certificate

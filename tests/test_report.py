"""Certificates as people see them."""

from io import StringIO

from pocketlm.runtimes.certificate import Certificate, Error, TargetCertificate
from pocketlm.runtimes.report import certificate_table
from rich.console import Console


def certificate(size_bytes, seconds):
    error = Error(kl=1.234567e-11, top1=1.0, max_abs_logit=0.1, perplexity_ratio=12.26, noise_floor_kl=1.234567e-11)
    return TargetCertificate(
        weights_identical=True, tensors_checked=1211, constants_checked=333, positions=224, quantization=error,
        conversion=error, activation=error, runtime=error, total=error, failures=(), evaluated_by="a runtime",
        size_bytes=size_bytes, seconds=seconds, write_seconds=seconds,
    )  # fmt: skip


def test_three_targets_fit_a_terminal_of_80_columns():
    names = ("onnx", "executorch", "coreml")
    text = StringIO()
    table = certificate_table(Certificate({name: certificate(12_345_678_901, 1234.5) for name in names}))
    Console(file=text, width=80).print(table)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line[:21].strip(): line[21:].split("  ") for line in lines if line.strip()}
    for label, cell in (
        ("size", "12345.7 MB"), ("weights identical", "yes (1211)"), ("conversion     KL", "1.2e-11"),
        ("runtime        KL", "1.2e-11"), ("quantization   KL", "1.2e-11"), ("total          KL", "1.2e-11"),
        ("written in", "1234.5 s"), ("verified in", "1234.5 s"), ("verdict", "passed"),
    ):  # fmt: skip
        assert [part.strip() for part in rows[label] if part.strip()] == [cell] * 3, label

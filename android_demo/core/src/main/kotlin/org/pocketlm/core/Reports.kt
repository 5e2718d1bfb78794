package org.pocketlm.core

import com.google.gson.JsonObject

private val ERRORS = listOf("quantization", "conversion", "cache", "activation", "runtime", "total")

/** What the export measured, as rows. */
fun certificateReport(manifest: Manifest): State.Report {
    val certificate = manifest.certificate
    val rows = mutableListOf(
        Row("Model", manifest.name), Row("Licence", manifest.licence ?: "not stated"), Row("Recipe", manifest.recipe),
        Row("Context", "${manifest.context} tokens"),
    )
    val targets = certificate.get("targets") as? JsonObject ?: JsonObject()
    for ((name, value) in targets.entrySet()) {
        val target = value as? JsonObject ?: continue
        rows += Row("$name: weights", if (target.flag("weights_identical")) "identical to the canonical ones" else "not the canonical ones")
        ERRORS.forEach { error -> (target.get(error) as? JsonObject)?.let { rows += Row("$name: $error", errorText(it)) } }
    }
    manifest.notes.forEach { rows += Row("Note", it) }
    return State.Report("Certificate", certificate.flag("passed"), rows)
}

private fun errorText(error: JsonObject): String {
    val parts = mutableListOf("KL %.3g".format(error.get("kl").asDouble("kl")))
    error.get("top1")?.let { parts += "top token %.1f %%".format(100 * it.asDouble) }
    error.get("noise_floor_kl")?.let { parts += "noise floor %.3g".format(it.asDouble) }
    return parts.joinToString(", ")
}

fun verifyReport(replay: Replay) = State.Report(
    if (replay.passed) "This phone computes what the model computes" else "This phone computes something else",
    replay.passed,
    listOf(
        Row("KL against the reference", "%.3g".format(replay.kl)),
        Row("Tolerance, from the noise floor", "%.3g".format(replay.toleranceKl)),
        Row("Arithmetic of this core", replay.arithmetic),
        Row("Positions", "${replay.positions}"),
        Row("Time", "%.1f s".format(replay.seconds)),
    ),
)

fun benchReport(result: BenchResult): State.Report {
    val rows = mutableListOf(
        Row("Runtime", result.runtime),
        Row("First load", "%.2f s".format(result.firstLoadSeconds)),
        Row("Later load", "%.2f s".format(result.laterLoadSeconds)),
        Row("First token after", "%.0f ms".format(1e3 * median(result.runs.map { it.timeToFirstTokenSeconds }))),
        Row("Prefill", "%.1f tokens/s".format(median(result.runs.map { it.prefillTokensPerSecond }))),
        Row("Decode", "%.1f tokens/s".format(median(result.runs.map { it.decodeTokensPerSecond }))),
        Row("Peak memory", "${result.peakMemoryBytes / 1_000_000} MB"),
        Row("Battery current", result.after.batteryMilliamperes?.let { "%.0f mA".format(it) } ?: "not told"),
        Row("Thermal status", result.after.thermalStatus ?: "not told"),
    )
    result.sustained.lastOrNull()?.let { last ->
        rows += Row("Decode after %.0f s".format(last.atSeconds), "%.1f tokens/s".format(last.decodeTokensPerSecond))
    }
    return State.Report("Benchmark", null, rows)
}

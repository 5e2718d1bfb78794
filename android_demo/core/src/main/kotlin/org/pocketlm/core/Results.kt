package org.pocketlm.core

import com.google.gson.GsonBuilder
import com.google.gson.JsonObject
import java.io.File

private const val SCHEMA = 1

/** What identifies a phone in a result. */
data class Device(val model: String, val android: String, val abi: String, val cores: Int, val memoryBytes: Long)

/** What a phone measured, as `pocketlm bench --import` and `pocketlm device` read it: runtimes/device_results.py. */
data class Results(
    val device: Device,
    val bundle: String,
    val manifestSha256: String,
    val verify: List<Replay> = emptyList(),
    val bench: Map<String, BenchResult> = emptyMap(),
    val settings: BenchSettings? = null,
    val error: String? = null,
) {
    fun toJson(): JsonObject = jsonOf(
        "schema_version" to SCHEMA,
        "kind" to "device",
        "device" to jsonOf(
            "platform" to "android", "model" to device.model, "system" to "Android ${device.android}", "abi" to device.abi,
            "cores" to device.cores, "memory_bytes" to device.memoryBytes,
        ),
        "bundle" to jsonOf("name" to bundle, "manifest_sha256" to manifestSha256),
        "error" to error,
        "verify" to verify.takeIf { it.isNotEmpty() }?.associate { it.target to verifyJson(it) },
        "bench" to settings?.takeIf { bench.isNotEmpty() }?.let(::benchJson),
    )

    private fun verifyJson(replay: Replay) = jsonOf(
        // JSON has no infinity: a KL that is no number is left out, and the replay did not pass.
        "kl" to replay.kl.takeIf { it.isFinite() }, "tolerance_kl" to replay.toleranceKl, "passed" to replay.passed,
        "positions" to replay.positions, "seconds" to replay.seconds, "arithmetic" to replay.arithmetic.takeIf { it != replay.target },
    )

    private fun benchJson(settings: BenchSettings) = jsonOf(
        "prompt_tokens" to settings.promptTokens, "new_tokens" to settings.newTokens, "threads" to settings.threads,
        "targets" to bench.mapValues { (_, result) -> resultJson(result) },
    )

    private fun resultJson(result: BenchResult) = jsonOf(
        "first_load_seconds" to result.firstLoadSeconds,
        "later_load_seconds" to result.laterLoadSeconds,
        "prefill_tokens_per_second" to median(result.runs.map { it.prefillTokensPerSecond }),
        "decode_tokens_per_second" to median(result.runs.map { it.decodeTokensPerSecond }),
        "time_to_first_token_seconds" to median(result.runs.map { it.timeToFirstTokenSeconds }),
        "peak_memory_bytes" to result.peakMemoryBytes,
        "runtime" to result.runtime,
        "runs" to result.runs.map {
            jsonOf(
                "prefill_tokens_per_second" to it.prefillTokensPerSecond,
                "decode_tokens_per_second" to it.decodeTokensPerSecond,
                "time_to_first_token_seconds" to it.timeToFirstTokenSeconds,
            )
        },
        "before" to readingJson(result.before),
        "after" to readingJson(result.after),
        "sustained" to result.sustained.map {
            jsonOf("at_seconds" to it.atSeconds, "decode_tokens_per_second" to it.decodeTokensPerSecond, "reading" to readingJson(it.reading))
        },
    )

    private fun readingJson(reading: Reading) = jsonOf(
        "battery_milliamperes" to reading.batteryMilliamperes,
        "temperature_celsius" to reading.temperatureCelsius,
        "thermal_status" to reading.thermalStatus,
    )

    /** Writes the file in one step: who waits for it never sees a part. */
    fun write(file: File) {
        file.parentFile?.mkdirs()
        val partial = File(file.path + ".partial")
        partial.writeText(GsonBuilder().setPrettyPrinting().create().toJson(toJson()) + "\n")
        if (!partial.renameTo(file)) throw InputException("$file cannot be written")
    }
}

internal fun median(values: List<Double>): Double =
    values.sorted().let { if (it.size % 2 == 1) it[it.size / 2] else (it[it.size / 2 - 1] + it[it.size / 2]) / 2 }

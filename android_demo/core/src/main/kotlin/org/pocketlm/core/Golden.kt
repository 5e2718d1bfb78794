package org.pocketlm.core

import com.google.gson.JsonObject
import java.io.File
import kotlin.math.exp
import kotlin.math.ln

private const val SCHEMA = 1

/** Logits that are kept of one position: the likeliest tokens. */
class Expectation(val logSumExp: Double, val ids: IntArray, val logits: DoubleArray)

/** What one target must give, per sequence and position from [Golden.first] on. */
class GoldenTarget(val toleranceKl: Double, val expected: List<List<Expectation>>)

/** golden.json, which runtimes/golden.py describes. */
class Golden(val prefill: Int, val first: Int, val sequences: List<IntArray>, val targets: Map<String, GoldenTarget>) {
    val positions get() = sequences.sumOf { it.size - first }

    companion object {
        /** Throws [InputException] if the file is missing or damaged. */
        fun open(file: File, vocabSize: Int): Golden = readJson(file) { parse(it, vocabSize) }

        private fun parse(content: JsonObject, vocabSize: Int): Golden {
            if (content.int("schema_version") != SCHEMA) throw UnexpectedJson("its schema is not known to this app")
            val sequences = content.array("sequences").map { it.asObject("sequence").array("tokens").ints("tokens").toIntArray() }
            val targets = content.obj("targets").entrySet().associate { (name, target) -> name to target(target.asObject(name)) }
            val golden = Golden(content.int("prefill"), content.int("first"), sequences, targets)
            golden.check(vocabSize)
            return golden
        }

        private fun target(content: JsonObject) = GoldenTarget(
            content.get("tolerance_kl").asDouble("tolerance_kl"),
            content.array("expected").map { row -> row.asArray("expected").map { expectation(it.asObject("position")) } },
        )

        private fun expectation(content: JsonObject): Expectation {
            val logits = content.array("logits").map { it.asDouble("logit") }.toDoubleArray()
            val ids = content.array("ids").ints("ids").toIntArray()
            if (ids.size != logits.size) throw UnexpectedJson("ids and logits differ in length")
            return Expectation(content.get("log_sum_exp").asDouble("log_sum_exp"), ids, logits)
        }
    }

    private fun check(vocabSize: Int) {
        val valid = sequences.isNotEmpty() && sequences.all { it.size > first && it.all { token -> token in 0 until vocabSize } } &&
            prefill in 1..first + 1 && targets.values.all { target ->
                target.expected.map { it.size } == sequences.map { it.size - first } &&
                    target.expected.all { row -> row.all { position -> position.ids.all { it in 0 until vocabSize } } }
            }
        if (!valid) throw UnexpectedJson("its parts do not fit together")
    }
}

/** What a replay found: the mean KL in nats against the logits expected of [arithmetic], an entry of golden.json. */
data class Replay(
    val target: String, val kl: Double, val toleranceKl: Double, val positions: Int, val seconds: Double, val arithmetic: String = target,
) {
    val passed get() = kl <= toleranceKl
}

/**
 * Feeds the golden sequences to a runtime as an app does, the prompt at once and then the known tokens one by one, and
 * compares. ONNX Runtime rounds activations in another way on each kind of core, and golden.json has an entry for each
 * (onnx, onnx-arm64, onnx-fp32): the one that fits best is the core's. [progress] gets the share that is done and cancels by
 * returning false: then the result is null.
 */
fun replay(golden: Golden, target: String, runtime: LlmRuntime, clock: Clock = SYSTEM_CLOCK, progress: (Double) -> Boolean = { true }): Replay? {
    val entries = golden.targets.filterKeys { it == target || it.startsWith("$target-") }
    if (entries.isEmpty()) throw InputException("golden.json has nothing for $target; export again with --to $target")
    val started = clock()
    val sums = entries.mapValuesTo(mutableMapOf()) { 0.0 }
    for ((row, tokens) in golden.sequences.withIndex()) {
        runtime.reset()
        for (position in golden.prefill - 1 until tokens.size) {
            val logits = runtime.run(if (position == golden.prefill - 1) tokens.copyOf(golden.prefill) else intArrayOf(tokens[position]))
            if (position >= golden.first) {
                for ((name, entry) in entries) {
                    sums[name] = sums.getValue(name) + klOfPosition(entry.expected[row][position - golden.first], logits)
                }
            }
            if (!progress((row + (position + 1.0) / tokens.size) / golden.sequences.size)) return null
        }
    }
    val seconds = clock() - started
    return entries
        .map { (name, entry) -> Replay(target, sums.getValue(name) / golden.positions, entry.toleranceKl, golden.positions, seconds, name) }
        .minByOrNull { it.kl / it.toleranceKl }
}

/** KL over the kept tokens and one more outcome for all others; infinite if a logit is not a number. */
internal fun klOfPosition(expected: Expectation, logits: FloatArray): Double {
    val most = logits.max().toDouble()
    val logSum = most + ln(logits.sumOf { exp(it - most) })
    var kl = 0.0
    var sumP = 0.0
    var sumQ = 0.0
    for ((i, id) in expected.ids.withIndex()) {
        val logP = expected.logits[i] - expected.logSumExp
        val logQ = logits[id] - logSum
        kl += exp(logP) * (logP - logQ)
        sumP += exp(logP)
        sumQ += exp(logQ)
    }
    val restP = maxOf(1e-12, 1 - sumP)
    val restQ = maxOf(1e-12, 1 - sumQ)
    kl += restP * ln(restP / restQ)
    return if (kl.isFinite()) kl else Double.POSITIVE_INFINITY
}

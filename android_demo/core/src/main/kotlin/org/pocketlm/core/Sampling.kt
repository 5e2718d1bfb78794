package org.pocketlm.core

import kotlin.math.exp

private const val HEAD = 1024

/** How the next token is chosen; names, meanings and limits are those of runtimes/sampling.py. */
data class Sampling(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val repetitionPenalty: Double = 1.0,
    val seed: ULong = 0u,
) {
    init {
        check(temperature >= 0 && temperature < Double.POSITIVE_INFINITY, "temperature", "a number of at least 0", temperature)
        check(topK >= 0, "top_k", "a whole number of at least 0", topK)
        check(topP > 0 && topP <= 1, "top_p", "above 0 and at most 1", topP)
        check(minP in 0.0..1.0, "min_p", "between 0 and 1", minP)
        check(repetitionPenalty > 0 && repetitionPenalty < Double.POSITIVE_INFINITY, "repetition_penalty", "above 0", repetitionPenalty)
    }

    private fun check(valid: Boolean, name: String, rule: String, value: Number) {
        if (!valid) throw InputException("$name must be $rule; it is $value")
    }
}

/** Random numbers in [0, 1), the same for equal seeds in every language: SplitMix64 (Steele, Lea and Flood, 2014). */
class Uniforms(seed: ULong) {
    private var state = seed.toLong()

    fun next(): Double {
        state += -0x61c8864680b583ebL
        var mixed = (state xor (state ushr 30)) * -0x40a7b892e31b1a47L
        mixed = (mixed xor (mixed ushr 27)) * -0x6b2fb644ecceee15L
        return ((mixed xor (mixed ushr 31)) ushr 11) * (1.0 / (1L shl 53))
    }
}

/**
 * The next token, as runtimes/sampling.py draws it from the same logits. [history] has all tokens so far.
 * Throws [InputException] if the logits are not numbers.
 */
fun sample(logits: FloatArray, sampling: Sampling, history: Collection<Int>, random: Uniforms): Int {
    val scores = penalised(logits, sampling.repetitionPenalty, history)
    if (sampling.temperature == 0.0) return scores.indices.maxWith(compareBy<Int> { scores[it] }.thenByDescending { it })
    for (i in scores.indices) scores[i] /= sampling.temperature
    val (ids, weights) = candidates(scores, sampling)
    val drawn = random.next()
    val order = descending(weights, drawn)
    val goal = drawn * weights.sum()
    var cumulative = 0.0
    for (position in order) {
        cumulative += weights[position]
        if (cumulative > goal) return ids[position]
    }
    return ids[order.last()]
}

private fun penalised(logits: FloatArray, penalty: Double, history: Collection<Int>): DoubleArray {
    val scores = DoubleArray(logits.size) { logits[it].toDouble() }
    // -inf alone is fine, it marks a token that must not come.
    if (scores.any { it.isNaN() } || !scores.max().isFinite()) {
        throw InputException("the model returned logits that are not finite numbers; verify the bundle")
    }
    if (penalty != 1.0) {
        for (token in history.toSet()) {
            if (token < scores.size) scores[token] = if (scores[token] < 0) scores[token] * penalty else scores[token] / penalty
        }
    }
    return scores
}

/** Tokens that may come, and their weights relative to the most likely one; in transformers' order of filters. */
private fun candidates(scores: DoubleArray, sampling: Sampling): Pair<IntArray, DoubleArray> {
    var ids = IntArray(scores.size) { it }
    if (sampling.topK in 1 until scores.size) {
        val least = largest(scores, sampling.topK)
        ids = ids.filter { scores[it] >= least }.toIntArray()
    }
    val most = scores.max()
    var weights = DoubleArray(ids.size) { exp(scores[ids[it]] - most) }
    if (sampling.topP < 1) {
        val goal = sampling.topP * weights.sum()
        var before = 0.0
        val kept = descending(weights, sampling.topP).filter { position -> (before < goal).also { before += weights[position] } }.sorted()
        ids = IntArray(kept.size) { ids[kept[it]] }
        weights = DoubleArray(kept.size) { weights[kept[it]] }
    }
    val likely = weights.indices.filter { weights[it] >= sampling.minP }
    return IntArray(likely.size) { ids[likely[it]] } to DoubleArray(likely.size) { weights[likely[it]] }
}

/** Positions of the largest weights, largest first and the lower one first among equals: enough to exceed [mass], or all. */
private fun descending(weights: DoubleArray, mass: Double): List<Int> {
    var positions: List<Int> = weights.indices.toList()
    if (weights.size > HEAD) {
        val least = largest(weights, HEAD)
        val head = positions.filter { weights[it] >= least }
        if (head.sumOf { weights[it] } > mass * weights.sum()) positions = head
    }
    return positions.sortedByDescending { weights[it] } // stable
}

/** The [count]-th largest value, by quickselect: sorting a whole vocabulary takes as long as a small model's step. */
internal fun largest(values: DoubleArray, count: Int): Double {
    val work = values.copyOf()
    val goal = work.size - count
    var low = 0
    var high = work.size - 1
    while (low < high) {
        val pivot = work[(low + high) ushr 1]
        var i = low
        var j = high
        while (i <= j) {
            while (work[i] < pivot) i++
            while (work[j] > pivot) j--
            if (i <= j) {
                val swapped = work[i]
                work[i++] = work[j]
                work[j--] = swapped
            }
        }
        if (goal <= j) high = j else if (goal >= i) low = i else break
    }
    return work[goal]
}

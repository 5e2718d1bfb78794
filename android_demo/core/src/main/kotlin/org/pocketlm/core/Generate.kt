package org.pocketlm.core

import org.pocketlm.core.tokenizer.StreamDecoder
import org.pocketlm.core.tokenizer.Tokenizer

/** Why an answer ended. */
enum class End { STOP_TOKEN, LENGTH, CONTEXT, CANCELLED }

/** How long an answer took. Rates are null where there was nothing to measure. */
data class Timing(
    val promptTokens: Int,
    val cachedTokens: Int,
    val generatedTokens: Int,
    val timeToFirstTokenSeconds: Double,
    val prefillTokensPerSecond: Double?,
    val decodeTokensPerSecond: Double?,
)

data class Answer(val text: String, val tokens: List<Int>, val end: End, val timing: Timing)

/** A clock that never runs backwards, in seconds. */
typealias Clock = () -> Double

val SYSTEM_CLOCK: Clock = { System.nanoTime() * 1e-9 }

/** Token after token from a runtime; knows what is in its cache, so that a conversation's next turn runs only what is new. */
class Generator(private val runtime: LlmRuntime, private val tokenizer: Tokenizer, private val stopTokens: Set<Int>, private val clock: Clock = SYSTEM_CLOCK) {
    private val cached = mutableListOf<Int>()

    /**
     * Answers a prompt. [show] gets text as it becomes final; [cancelled] is asked before each token.
     * Throws [InputException] if the prompt is empty or does not fit the context.
     */
    fun answer(prompt: List<Int>, sampling: Sampling, maxNewTokens: Int, cancelled: () -> Boolean, show: (String) -> Unit): Answer {
        if (maxNewTokens < 1) throw InputException("the number of new tokens must be at least 1, it is $maxNewTokens")
        val started = clock()
        val reused = reusable(prompt)
        var logits = run(prompt.drop(reused))
        val prefilled = clock()
        val random = Uniforms(sampling.seed)
        val decoder = StreamDecoder(tokenizer)
        val history = prompt.toMutableList()
        val text = StringBuilder()
        var first = 0.0
        var end = if (cancelled()) End.CANCELLED else null
        while (end == null) {
            val token = sample(logits, sampling, history, random)
            history += token
            if (first == 0.0) first = clock()
            end = reason(token, history.size - prompt.size, maxNewTokens)
            if (end != End.STOP_TOKEN) decoder.add(token).also { text.append(it) }.let(show)
            if (end == null && cancelled()) end = End.CANCELLED
            if (end == null) logits = run(listOf(token))
        }
        decoder.finish().also { text.append(it) }.let(show)
        val generated = history.drop(prompt.size)
        val timing = Timing(
            prompt.size, reused, generated.size, (if (first == 0.0) prefilled else first) - started,
            rate(prompt.size - reused, prefilled - started), rate(generated.size - 1, clock() - first),
        )
        return Answer(text.toString(), generated, end, timing)
    }

    private fun reason(token: Int, generated: Int, limit: Int): End? = when {
        token in stopTokens -> End.STOP_TOKEN
        generated >= limit -> End.LENGTH
        runtime.position >= runtime.context -> End.CONTEXT
        else -> null
    }

    /** How many of the prompt's tokens are in the cache; at least one must be run for its logits. */
    private fun reusable(prompt: List<Int>): Int {
        if (prompt.size > runtime.context) {
            throw InputException("the prompt has ${prompt.size} tokens and the context holds ${runtime.context}; shorten it")
        }
        val keeps = runtime.position == cached.size && cached.size < prompt.size && cached == prompt.subList(0, cached.size)
        if (!keeps) {
            runtime.reset()
            cached.clear()
        }
        return cached.size
    }

    private fun run(tokens: List<Int>): FloatArray = runtime.run(tokens.toIntArray()).also { cached += tokens }

    private fun rate(tokens: Int, seconds: Double): Double? = if (tokens > 0 && seconds > 0) tokens / seconds else null
}

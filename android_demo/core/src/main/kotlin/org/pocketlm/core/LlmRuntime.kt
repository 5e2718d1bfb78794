package org.pocketlm.core

import java.io.Closeable

/** A loaded artifact with its cache: one conversation. Used from one thread at a time. */
interface LlmRuntime : Closeable {
    /** Tokens that the cache holds. */
    val context: Int

    /** Tokens in the cache now. */
    val position: Int

    /** Name and version of what computes. */
    val description: String

    /**
     * Appends tokens; the logits behind the last one (vocabulary size), valid until the next call.
     * Throws [InputException] if there are none, or they do not fit.
     */
    fun run(tokens: IntArray): FloatArray

    /** Forgets the conversation. */
    fun reset()
}

/** Throws unless [runtime] can take these tokens now. */
fun checkTokens(runtime: LlmRuntime, vocabSize: Int, tokens: IntArray) {
    val total = runtime.position + tokens.size
    when {
        tokens.isEmpty() -> throw InputException("there are no tokens to run; the prompt is empty")
        total > runtime.context ->
            throw InputException("$total tokens do not fit the context of ${runtime.context}; shorten the conversation")
        tokens.any { it < 0 || it >= vocabSize } -> throw InputException("a token id lies outside the vocabulary of $vocabSize")
    }
}

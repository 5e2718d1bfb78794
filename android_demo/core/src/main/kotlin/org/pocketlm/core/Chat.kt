package org.pocketlm.core

import org.pocketlm.core.tokenizer.Tokenizer

/** The part of a conversation that does not change: how messages become a prompt that fits. */
class Chat(private val tokenizer: Tokenizer, private val turns: ChatTurns, private val context: Int, private val maxNewTokens: Int) {
    /** A prompt's tokens and the messages that it holds. */
    data class Prompt(val tokens: List<Int>, val messages: List<Message>)

    fun encode(messages: List<Message>): List<Int> =
        tokenizer.encode(turns.segments(messages), turns.control ?: tokenizer.specialTokens)

    /**
     * The prompt without the oldest turns where all would not fit: a quarter of the context is kept for the answer; once
     * turns must go, half of it, so that the turns that follow find their beginning in the cache. See runtimes/chat.py.
     * Throws [InputException] if the last message alone is too long.
     */
    fun fit(messages: List<Message>): Prompt {
        var room = context - minOf(maxNewTokens, context / 4)
        var kept = messages
        while (true) {
            val tokens = encode(kept)
            if (tokens.size <= room) return Prompt(tokens, kept)
            val first = if (kept[0].role == "system") 1 else 0
            if (kept.size - first >= 3) {
                kept = kept.take(first) + kept.drop(first + 2)
                room = minOf(room, context / 2)
            } else if (tokens.size <= context) {
                return Prompt(tokens, kept)
            } else {
                throw InputException("the message takes ${tokens.size} tokens and the context holds $context; shorten it")
            }
        }
    }
}

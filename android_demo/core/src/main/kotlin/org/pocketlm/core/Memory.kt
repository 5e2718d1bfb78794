package org.pocketlm.core

import com.google.gson.JsonObject

private const val MEGABYTE = 1_000_000L
private const val WORKING = 150 * MEGABYTE // the app itself, the runtime's buffers and the tokenizer
private const val FLOAT = 4L

/** What loading an artifact will take of a phone's memory, and what the phone has left. */
data class MemoryNeed(val weightsBytes: Long, val cacheBytes: Long, val availableBytes: Long) {
    val neededBytes = weightsBytes + cacheBytes + WORKING

    /** One line if the artifact does not fit; loading it would get the app killed. */
    val refusal: String?
        get() = if (neededBytes <= availableBytes) null else
            "the model needs about ${neededBytes / MEGABYTE} MB and ${availableBytes / MEGABYTE} MB are free; " +
                "close other apps, or export with a smaller --context or recipe"
}

/** The need of [target]: its files, and a cache of floats for the whole context. [availableBytes] is what the system can give. */
fun memoryNeed(manifest: Manifest, target: String, availableBytes: Long): MemoryNeed =
    MemoryNeed(manifest.sizeBytes(target), cacheBytes(manifest.config, manifest.context), availableBytes)

private fun cacheBytes(config: JsonObject, context: Int): Long {
    val heads = config.int("num_attention_heads")
    val width = optional(config, "head_dim") ?: (config.int("hidden_size") / heads)
    val cached = optional(config, "num_key_value_heads") ?: heads
    return 2 * FLOAT * config.int("num_hidden_layers") * cached * width * context
}

private fun optional(config: JsonObject, key: String): Int? = config.get(key)?.takeUnless { it.isJsonNull }?.asInt(key)

package org.pocketlm.core

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer

private const val PAST = "past_key_values"
private const val PROMPT_CHUNK = 512 // activations take memory for each token of a call

/** [tokens] in parts of at most [size], none of one token unless it is the only one: that would round differently. */
internal fun chunks(tokens: IntArray, size: Int = PROMPT_CHUNK): List<IntArray> = buildList {
    var start = 0
    while (start < tokens.size) {
        val end = minOf(start + size, tokens.size).let { if (it == tokens.size - 1) it - 1 else it }
        add(tokens.copyOfRange(start, end))
        start = end
    }
}

/** ONNX Runtime, with a cache that the graph updates in place: past and present are the same buffers. */
class OnnxRuntime private constructor(
    private val environment: OrtEnvironment,
    private val options: OrtSession.SessionOptions,
    private val session: OrtSession,
) : LlmRuntime {
    override val context: Int = session.metadata.customMetadata.getValue("context").toInt()
    override val description = "ONNX Runtime ${environment.version}"
    override var position = 0
        private set

    private val vocabSize = shape(session.outputInfo.getValue("logits").info as TensorInfo).last().toInt()
    private val cache: Map<String, OnnxTensor> = session.inputInfo.filterKeys { it.startsWith(PAST) }.mapValues { (_, node) ->
        val info = node.info as TensorInfo
        val (_, heads, _, width) = shape(info).toList()
        zeros(environment, info.type, longArrayOf(1, heads, context.toLong(), width))
    }
    private val presents = cache.mapKeys { (name, _) -> name.replace(PAST, "present") }
    private val mask = longs(context).apply { while (hasRemaining()) put(1) }
    private val oneLogits = floats(vocabSize)
    private val oneOutput = OnnxTensor.createTensor(environment, oneLogits, longArrayOf(1, 1, vocabSize.toLong()))
    private val logits = FloatArray(vocabSize)

    override fun run(tokens: IntArray): FloatArray {
        checkTokens(this, vocabSize, tokens)
        try {
            chunks(tokens).forEach(::append)
        } catch (error: OrtException) {
            throw InputException("ONNX Runtime could not run the model (${oneLine(error)})", error)
        }
        return logits
    }

    private fun append(tokens: IntArray) {
        val total = position + tokens.size
        val ids = longs(tokens.size).apply { tokens.forEach { put(it.toLong()) } }
        ids.rewind()
        OnnxTensor.createTensor(environment, ids, longArrayOf(1, tokens.size.toLong())).use { idTensor ->
            OnnxTensor.createTensor(environment, ones(total), longArrayOf(1, total.toLong())).use { maskTensor ->
                val inputs = cache + mapOf("input_ids" to idTensor, "attention_mask" to maskTensor)
                if (tokens.size == 1) runOne(inputs) else runMany(inputs)
            }
        }
        position = total
    }

    private fun ones(count: Int): LongBuffer = mask.duplicate().apply { position(0); limit(count) }.slice()

    private fun runOne(inputs: Map<String, OnnxTensor>) {
        session.run(inputs, emptySet(), presents + ("logits" to oneOutput)).close()
        oneLogits.duplicate().apply { rewind() }.get(logits)
    }

    private fun runMany(inputs: Map<String, OnnxTensor>) =
        session.run(inputs, setOf("logits"), presents).use { result ->
            val all = (result.get("logits").get() as OnnxTensor).floatBuffer
            all.position(all.limit() - vocabSize)
            all.get(logits)
        }

    override fun reset() {
        position = 0 // what is left in the buffers is never looked at
    }

    override fun close() {
        cache.values.forEach { it.close() }
        oneOutput.close()
        session.close()
        options.close()
    }

    companion object {
        /** Loads model.onnx in [folder]; throws [InputException] if ONNX Runtime refuses it. */
        fun open(folder: File, threads: Int): OnnxRuntime {
            val file = File(folder, "model.onnx")
            val environment = OrtEnvironment.getEnvironment()
            val options = OrtSession.SessionOptions().apply {
                setIntraOpNumThreads(threads)
                setInterOpNumThreads(1)
            }
            try {
                return OnnxRuntime(environment, options, environment.createSession(file.path, options))
            } catch (error: OrtException) {
                throw refused(file, options, error)
            } catch (error: NoSuchElementException) { // a model that pocketlm did not write
                throw refused(file, options, error)
            }
        }

        private fun refused(file: File, options: OrtSession.SessionOptions, error: Exception): InputException {
            options.close()
            return InputException("$file: ONNX Runtime cannot load it (${oneLine(error)}); export the model again", error)
        }

        /** A part of the cache, in the type that the graph keeps it in. */
        private fun zeros(environment: OrtEnvironment, type: OnnxJavaType, shape: LongArray): OnnxTensor {
            val count = shape.reduce(Long::times).toInt()
            return when (type) {
                OnnxJavaType.FLOAT -> OnnxTensor.createTensor(environment, floats(count), shape)
                OnnxJavaType.INT8 -> OnnxTensor.createTensor(environment, direct(count, Byte.SIZE_BYTES), shape, type)
                else -> throw NoSuchElementException("its cache holds $type, this app knows FLOAT and INT8")
            }
        }

        private fun shape(info: TensorInfo): LongArray = info.shape

        private fun floats(count: Int): FloatBuffer = direct(count, Float.SIZE_BYTES).asFloatBuffer()

        private fun longs(count: Int): LongBuffer = direct(count, Long.SIZE_BYTES).asLongBuffer()

        private fun direct(count: Int, width: Int) = ByteBuffer.allocateDirect(count * width).order(ByteOrder.nativeOrder())
    }
}

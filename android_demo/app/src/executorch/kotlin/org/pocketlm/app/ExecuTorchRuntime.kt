package org.pocketlm.app

import org.pocketlm.core.InputException
import org.pocketlm.core.LlmRuntime
import org.pocketlm.core.checkTokens
import org.pocketlm.core.oneLine
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File

/**
 * ExecuTorch's Module rather than its LlmModule: the latter samples by itself and gives no logits, so it could not be
 * verified. The program keeps its cache in its own memory, and takes tokens and their position.
 */
class ExecuTorchRuntime private constructor(private val module: Module) : LlmRuntime {
    override val context = ask("get_max_context_len")
    override val description = "ExecuTorch"
    override var position = 0
        private set

    private val vocabSize = ask("get_vocab_size")
    private val most = minOf(ask("get_max_seq_len"), 512) // tokens of one call: its working memory grows with them
    private val logits = FloatArray(vocabSize)

    private fun ask(method: String): Int = module.execute(method)[0].toInt().toInt()

    override fun run(tokens: IntArray): FloatArray {
        checkTokens(this, vocabSize, tokens)
        try {
            for (start in tokens.indices step most) call(tokens.copyOfRange(start, minOf(start + most, tokens.size)))
        } catch (error: RuntimeException) {
            throw InputException("ExecuTorch could not run the model (${oneLine(error)})", error)
        }
        return logits
    }

    private fun call(tokens: IntArray) {
        val ids = Tensor.fromBlob(LongArray(tokens.size) { tokens[it].toLong() }, longArrayOf(1, tokens.size.toLong()))
        val at = Tensor.fromBlob(longArrayOf(position.toLong()), longArrayOf(1))
        val all = module.execute("forward", EValue.from(ids), EValue.from(at))[0].toTensor().dataAsFloatArray
        all.copyInto(logits, 0, all.size - vocabSize)
        position += tokens.size
    }

    override fun reset() {
        position = 0 // what is left in the cache is never looked at
    }

    override fun close() = module.destroy()

    companion object {
        /** Loads model.pte in [folder]; throws [InputException] if ExecuTorch refuses it. */
        fun open(folder: File, threads: Int): ExecuTorchRuntime {
            val file = File(folder, "model.pte")
            if (!file.isFile) throw InputException("$file is missing; export the model again with --to executorch")
            try {
                return ExecuTorchRuntime(Module.load(file.path, Module.LOAD_MODE_MMAP, threads))
            } catch (error: RuntimeException) {
                throw InputException("$file: ExecuTorch cannot load it (${oneLine(error)}); export the model again", error)
            }
        }
    }
}

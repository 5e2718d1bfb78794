package org.pocketlm.app

import org.pocketlm.core.LlmRuntime
import org.pocketlm.core.OnnxRuntime
import java.io.File

/** The runtimes of the Gradle build. */
val RUNTIMES: Map<String, (File, Int) -> LlmRuntime> = mapOf(
    "onnx" to OnnxRuntime::open,
    "executorch" to ExecuTorchRuntime::open,
)

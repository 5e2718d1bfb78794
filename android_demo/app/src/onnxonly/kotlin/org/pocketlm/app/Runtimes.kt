package org.pocketlm.app

import org.pocketlm.core.LlmRuntime
import org.pocketlm.core.OnnxRuntime
import java.io.File

/** The runtimes of a build without ExecuTorch's library: that of `make android-apk` and of CI. */
val RUNTIMES: Map<String, (File, Int) -> LlmRuntime> = mapOf("onnx" to OnnxRuntime::open)

package org.pocketlm.app

import android.content.Intent
import org.pocketlm.core.Automation
import org.pocketlm.core.BenchSettings

/**
 * What `adb shell am start` can ask for:
 * --es id RESULT --es bundle NAME [--es target onnx] [--ez verify true] [--ez bench true
 * --ei prompt_tokens 256 --ei new_tokens 64 --ei runs 5 --ei threads 4 --ei sustained_seconds 300]
 */
fun automation(intent: Intent): Automation? {
    val id = intent.getStringExtra("id")?.takeIf(::isName) ?: return null
    val bundle = intent.getStringExtra("bundle")?.takeIf(::isName) ?: return null
    val settings = BenchSettings().run {
        BenchSettings(
            intent.positive("prompt_tokens", promptTokens), intent.positive("new_tokens", newTokens),
            intent.positive("runs", runs), intent.positive("threads", PocketApp.threads()),
            intent.getIntExtra("sustained_seconds", 0).coerceIn(0, 3600),
        )
    }
    return Automation(
        id, bundle, intent.getStringExtra("target"), intent.getBooleanExtra("verify", false),
        settings.takeIf { intent.getBooleanExtra("bench", false) },
    )
}

private fun Intent.positive(name: String, default: Int) = getIntExtra(name, default).coerceIn(1, 100_000)

/** Any app may start this one: a name must not lead out of the folders that it looks in. */
private fun isName(text: String) = Regex("[A-Za-z0-9][A-Za-z0-9._-]*").matches(text)

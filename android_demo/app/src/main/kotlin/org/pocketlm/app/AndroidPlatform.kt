package org.pocketlm.app

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import org.pocketlm.core.Device
import org.pocketlm.core.LlmRuntime
import org.pocketlm.core.Platform
import org.pocketlm.core.Sensors
import java.io.File

/** Where `pocketlm device install` puts bundles: adb may write there, and every app may read. */
const val PUSHED_BUNDLES = "/data/local/tmp/pocketlm"

class AndroidPlatform(private val context: Context) : Platform {
    private val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager

    override val device: Device
        get() = Device(
            model = "${Build.MANUFACTURER} ${Build.MODEL}",
            android = "${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
            abi = Build.SUPPORTED_ABIS.firstOrNull().orEmpty(),
            cores = Runtime.getRuntime().availableProcessors(),
            memoryBytes = memory().totalMem,
        )
    override val sensors: Sensors = AndroidSensors(context)
    override val bundleFolders = listOf(File(context.filesDir, "bundles"), File(PUSHED_BUNDLES))
    override val resultsFolder: File get() = File(context.getExternalFilesDir(null) ?: context.filesDir, "results")
    override val runtimes: Map<String, (File, Int) -> LlmRuntime> = RUNTIMES

    /** Below the threshold the system starts to kill apps. */
    override fun availableMemoryBytes(): Long = memory().run { availMem - threshold }

    override fun openIndex(file: File) = AndroidIndexDatabase.open(file)

    private fun memory() = ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
}

package org.pocketlm.core

import org.pocketlm.core.search.IndexDatabase
import java.io.File

/** What the app needs of the machine it runs on; a phone's is in app/, a test's in the tests. */
interface Platform {
    val device: Device
    val sensors: Sensors

    /** Folders that hold bundles; the app may write into the first. */
    val bundleFolders: List<File>
    val resultsFolder: File

    /** Target -> how its runtime opens the artifact's folder with a number of threads. */
    val runtimes: Map<String, (File, Int) -> LlmRuntime>

    fun availableMemoryBytes(): Long

    /** Opens an index with the platform's SQLite; throws [InputException]. */
    fun openIndex(file: File): IndexDatabase
}

/** What `adb shell am start` asked for: open a bundle, work, write results/[id].json. */
data class Automation(val id: String, val bundle: String, val target: String?, val verify: Boolean, val bench: BenchSettings?)

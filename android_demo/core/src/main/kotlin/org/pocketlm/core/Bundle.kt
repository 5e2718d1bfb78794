package org.pocketlm.core

import com.google.gson.JsonObject
import java.io.File
import java.security.MessageDigest

private const val MANIFEST = "pocketlm.json"
private const val SCHEMA = 1
private val TARGETS = listOf("onnx", "executorch", "coreml")

/** One file of a bundle. */
data class FileEntry(val sizeBytes: Long, val sha256: String)

/** What an app needs of pocketlm.json; see export/bundle.py for all of it. */
data class Manifest(
    val pocketlm: String,
    val name: String,
    val recipe: String,
    val licence: String?,
    val context: Int,
    val vocabSize: Int,
    val stopTokens: Set<Int>,
    val files: Map<String, FileEntry>,
    val notes: List<String>,
    val certificate: JsonObject,
    val config: JsonObject,
) {
    /** Names of the artifacts in the bundle. */
    val targets: List<String> = TARGETS.filter { target -> files.keys.any { it.startsWith("$target/") } }

    fun sizeBytes(target: String): Long = files.filterKeys { it.startsWith("$target/") }.values.sumOf { it.sizeBytes }
}

/** A bundle's folder with its manifest, both known to be sound; files are not read yet. */
class Bundle private constructor(val folder: File, val manifest: Manifest) {
    fun file(name: String) = File(folder, name)

    /**
     * Compares every file with its hash. [progress] gets the share that is done; where it returns false, the work stops and
     * the result is false. Throws [InputException] for the first file that is missing or changed.
     */
    fun checkHashes(progress: (Double) -> Boolean = { true }): Boolean {
        val total = manifest.files.values.sumOf { it.sizeBytes }.coerceAtLeast(1)
        var done = 0L
        for ((name, entry) in manifest.files) {
            val file = file(name)
            val sameSize = file.isFile && file.length() == entry.sizeBytes
            val found = if (sameSize) sha256(file) { progress((done + it).toDouble() / total) } ?: return false else ""
            if (found != entry.sha256) {
                throw InputException("$folder: $name is missing or was changed since the export; push or import it again")
            }
            done += entry.sizeBytes
        }
        return true
    }

    companion object {
        /** Reads and checks pocketlm.json; throws [InputException]. Only the artifacts in [targets] can be run. */
        fun open(folder: File): Bundle {
            val file = File(folder, MANIFEST)
            if (!file.isFile) {
                throw InputException("$folder: not a bundle, it has no $MANIFEST; make one with: pocketlm export")
            }
            val bundle = Bundle(folder, readJson(file) { parse(file, it) })
            if (bundle.manifest.targets.isEmpty()) {
                throw InputException("$folder: holds no artifact; export again with --to")
            }
            return bundle
        }

        private fun parse(file: File, content: JsonObject): Manifest {
            checkSchema(file, content)
            val config = content.obj("config")
            val files = content.obj("files").entrySet().associate { (name, entry) -> safe(file, name) to entry(name, entry.asObject(name)) }
            return Manifest(
                pocketlm = content.text("pocketlm"),
                name = content.text("name"),
                recipe = content.obj("recipe").textOrNull("name") ?: "own recipe",
                licence = content.textOrNull("licence"),
                context = content.int("context"),
                vocabSize = config.int("vocab_size"),
                stopTokens = content.array("stop_tokens").ints("stop_tokens").toSet(),
                files = files,
                notes = content.array("notes").map { it.asString },
                certificate = content.obj("certificate"),
                config = config,
            )
        }

        private fun checkSchema(file: File, content: JsonObject) {
            val version = content.get("schema_version") ?: throw UnexpectedJson("schema_version is missing")
            val number = runCatching { version.asInt("schema_version") }.getOrNull()
            if (number == null || number > SCHEMA) {
                val shown = version.toString().trim('"')
                throw InputException("$file: schema version $shown, this app reads up to $SCHEMA; update the app")
            }
        }

        private fun entry(name: String, content: JsonObject) = FileEntry(content.get("size_bytes").asLong(name), content.text("sha256"))

        /** Refuses a path that leaves the bundle. */
        private fun safe(file: File, name: String): String {
            if (name.startsWith("/") || "\\" in name || ".." in name.split("/")) {
                throw InputException("$file: file name '$name' leaves the bundle")
            }
            return name
        }
    }
}

/** Sha256 in hexadecimal; null if [progress], which gets the bytes read so far, says stop. */
fun sha256(file: File, progress: (Long) -> Boolean = { true }): String? {
    val digest = MessageDigest.getInstance("SHA-256")
    var read = 0L
    file.inputStream().use { stream ->
        val buffer = ByteArray(1 shl 20)
        while (true) {
            val count = stream.read(buffer)
            if (count < 0) break
            digest.update(buffer, 0, count)
            read += count
            if (!progress(read)) return null
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}

package org.pocketlm.app

import android.content.ContentResolver
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import org.pocketlm.core.Bundle
import org.pocketlm.core.InputException
import java.io.File
import java.io.IOException

private val COLUMNS = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE, Document.COLUMN_SIZE)

/** Copies a bundle out of a folder that the user picked; it appears under its name when it is whole, or not at all. */
class TreeImport(private val resolver: ContentResolver, private val tree: Uri) {
    private data class Entry(val id: String, val name: String, val isFolder: Boolean, val size: Long)

    private data class Source(val id: String, val path: String, val size: Long)

    /** Throws [InputException] if the folder holds no bundle, is damaged, or the phone is full. */
    fun copy(into: File, progress: (Double?) -> Boolean) {
        val sources = list(DocumentsContract.getTreeDocumentId(tree), "")
        if (sources.none { it.path == "pocketlm.json" }) throw InputException("this folder is no bundle, it has no pocketlm.json; pick the folder that an export made")
        val partial = File(into, ".importing").apply { deleteRecursively() }
        try {
            copyAll(sources, partial, progress)
            val bundle = Bundle.open(partial)
            if (!bundle.checkHashes { progress(it) }) throw InputException("the import was stopped")
            val final = File(into, bundle.manifest.name.replace(Regex("[^A-Za-z0-9._-]"), "_"))
            final.deleteRecursively()
            if (!partial.renameTo(final)) throw InputException("${final.name} cannot be written")
        } catch (error: IOException) {
            throw InputException("the import failed (${error.message}); is there enough free space?", error)
        } finally {
            partial.deleteRecursively()
        }
    }

    private fun copyAll(sources: List<Source>, folder: File, progress: (Double?) -> Boolean) {
        val total = sources.sumOf { it.size }.coerceAtLeast(1)
        var done = 0L
        for (source in sources) {
            val file = File(folder, source.path).apply { parentFile?.mkdirs() }
            val uri = DocumentsContract.buildDocumentUriUsingTree(tree, source.id)
            val stream = resolver.openInputStream(uri) ?: throw InputException("${source.path} cannot be read")
            stream.use { input -> file.outputStream().use { input.copyTo(it, 1 shl 20) } }
            done += source.size
            if (!progress(done.toDouble() / total)) throw InputException("the import was stopped")
        }
    }

    private fun list(folder: String, prefix: String): List<Source> = entries(folder).flatMap { entry ->
        // Names come from another app, and must not lead out of the bundle.
        if ('/' in entry.name || entry.name == "..") throw InputException("this folder is no bundle, it has a file '${entry.name}'")
        if (entry.isFolder) list(entry.id, "$prefix${entry.name}/") else listOf(Source(entry.id, prefix + entry.name, entry.size))
    }

    private fun entries(folder: String): List<Entry> {
        val uri = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
        val cursor = resolver.query(uri, COLUMNS, null, null, null) ?: throw InputException("this folder cannot be read")
        return cursor.use {
            generateSequence { if (it.moveToNext()) it else null }.map { row ->
                Entry(row.getString(0), row.getString(1), row.getString(2) == Document.MIME_TYPE_DIR, row.getLong(3))
            }.toList()
        }
    }
}

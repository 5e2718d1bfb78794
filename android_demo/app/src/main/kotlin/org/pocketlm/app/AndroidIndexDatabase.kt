package org.pocketlm.app

import android.database.Cursor
import android.database.SQLException
import android.database.sqlite.SQLiteDatabase
import org.pocketlm.core.InputException
import org.pocketlm.core.search.IndexDatabase
import java.io.File

/** Android's own SQLite, which has FTS4 on all versions; FTS5 is not in it. */
class AndroidIndexDatabase private constructor(file: File, private val database: SQLiteDatabase) : IndexDatabase {
    override val name: String = file.name

    override fun rows(sql: String, vararg arguments: String): List<List<Any?>> = guarded(name) {
        database.rawQuery(sql, arguments).use { cursor -> cursor.all { (0 until it.columnCount).map(it::value) } }
    }

    override fun split(text: String): List<String> =
        rows("SELECT token FROM temp.parts WHERE input = ? ORDER BY position", text).map { (token) -> "$token" }

    override fun close() = database.close()

    companion object {
        /** Opens a file without the right to write; throws [InputException]. */
        fun open(file: File): AndroidIndexDatabase = guarded(file.name) {
            val flags = SQLiteDatabase.OPEN_READONLY or SQLiteDatabase.NO_LOCALIZED_COLLATORS
            val database = SQLiteDatabase.openDatabase(file.path, null, flags) { } // the default handler deletes damaged files
            try {
                database.execSQL("PRAGMA trusted_schema = OFF") // what the file's own schema would run; ignored before Android 12
                database.execSQL("CREATE VIRTUAL TABLE temp.parts USING fts3tokenize (unicode61)")
            } catch (error: SQLException) {
                database.close()
                throw error
            }
            AndroidIndexDatabase(file, database)
        }
    }
}

private fun <T> Cursor.all(row: (Cursor) -> T): List<T> = generateSequence { if (moveToNext()) row(this) else null }.toList()

private fun Cursor.value(column: Int): Any? = when (getType(column)) {
    Cursor.FIELD_TYPE_NULL -> null
    Cursor.FIELD_TYPE_INTEGER -> getLong(column)
    Cursor.FIELD_TYPE_BLOB -> getBlob(column)
    else -> getString(column)
}

private fun <T> guarded(name: String, work: () -> T): T =
    try {
        work()
    } catch (error: SQLException) {
        val why = error.message.orEmpty().lineSequence().first().take(200)
        throw InputException("$name: is no index or a damaged one ($why); make it again with: pocketlm index", error)
    }

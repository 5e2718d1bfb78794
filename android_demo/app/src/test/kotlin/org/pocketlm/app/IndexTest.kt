package org.pocketlm.app

import android.database.sqlite.SQLiteDatabase
import android.database.sqlite.SQLiteException
import com.google.gson.JsonArray
import com.google.gson.JsonParser
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.pocketlm.core.InputException
import org.pocketlm.core.search.FactIndex
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import java.io.File

/** Holds the index against what Python found in it, with the SQLite that Robolectric built as Android does: without FTS5. */
@RunWith(RobolectricTestRunner::class)
@Config(manifest = Config.NONE, sdk = [34])
class IndexTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val golden = File(requireNotNull(System.getProperty("golden")))

    private fun copy() = File(golden, "facts.db").copyTo(File(temporary.root, "facts.db"), overwrite = true)

    private fun JsonArray.objects() = map { it.asJsonObject }

    @Test
    fun `passages, their order and their scores are those of FTS5`() {
        val searches = JsonParser.parseString(File(golden, "search.json").readText()).asJsonObject.getAsJsonArray("searches").objects()
        FactIndex.open(AndroidIndexDatabase.open(copy().apply { setReadOnly() })).use { index ->
            for (case in searches) {
                val words = case.getAsJsonArray("words").map { it.asString }
                val expected = case.getAsJsonArray("passages").objects()
                val found = index.rank(words)
                assertEquals("$words", expected.map { it.get("id").asLong }, found.map { it.id })
                for ((want, got) in expected zip found) assertEquals("$words", want.get("score").asDouble, got.score, 1e-9)
                val passages = index.search(words, 3)
                assertEquals(expected.take(3).map { it.get("title").asString to it.get("source").asString }, passages.map { it.title to it.source })
            }
        }
        assertTrue(searches.count { it.getAsJsonArray("passages").size() > 1 } > 5)
    }

    @Test
    fun `this SQLite has no FTS5, as on a phone`() {
        SQLiteDatabase.create(null).use { database ->
            val error = assertThrows(SQLiteException::class.java) { database.execSQL("CREATE VIRTUAL TABLE a USING fts5 (b)") }
            assertTrue("${error.message}", "no such module: fts5" in error.message.orEmpty())
        }
    }

    private fun refusal(file: File, words: List<String> = listOf("swift")): String {
        val error = assertThrows(InputException::class.java) { FactIndex.open(AndroidIndexDatabase.open(file)).use { it.search(words, 3) } }
        assertTrue("${error.message}", '\n' !in error.message.orEmpty())
        return error.message.orEmpty()
    }

    @Test
    fun `what is no index, or another schema's, is refused`() {
        val file = File(temporary.root, "facts.db")
        file.writeText("hello")
        assertTrue(refusal(file).startsWith("facts.db: is no index or a damaged one"))
        assertEquals("the file stays", "hello", file.readText())
        for ((schema, advice) in listOf(1 to "make the index again with: pocketlm index", 3 to "update the app")) {
            copy()
            SQLiteDatabase.openDatabase(file.path, null, SQLiteDatabase.OPEN_READWRITE).use { it.execSQL("UPDATE meta SET value = $schema WHERE key = 'schema'") }
            assertTrue(refusal(file).endsWith("index schema $schema, this app reads 2; $advice"))
        }
        SQLiteDatabase.openDatabase(copy().path, null, SQLiteDatabase.OPEN_READWRITE).use { it.execSQL("DELETE FROM meta WHERE key = 'terms'") }
        assertTrue(refusal(file).contains("unfinished"))
    }

    @Test
    fun `a damaged index is one line`() {
        val file = copy()
        val content = file.readBytes()
        for (start in 8192 until content.size - 512 step 4096) content.fill(-1, start, start + 512)
        file.writeBytes(content)
        assertTrue(refusal(file).contains("damaged"))
        assertTrue("the file stays", file.isFile)
    }
}

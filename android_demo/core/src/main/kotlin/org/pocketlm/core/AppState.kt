package org.pocketlm.core

/** A bundle that can be opened, or why it cannot. */
data class Choice(val folder: java.io.File, val title: String, val detail: String, val usable: Boolean)

/** A row of a report: what, and its value. */
data class Row(val label: String, val value: String)

/** What the app shows; views are functions of it. */
sealed class State {
    /** Bundles to choose from; [notice] says why the last attempt failed. */
    data class Choosing(val choices: List<Choice>, val notice: String?) : State()

    /** Long work, [share] of it done, null where that is not known. */
    data class Busy(val what: String, val share: Double?) : State()

    /**
     * A conversation; [streaming] is the answer so far, null when none is being written. [search] says whether facts are looked
     * up, null where there is no index; [sources] are those of the last answer, a line each.
     */
    data class Chatting(
        val title: String,
        val messages: List<Message>,
        val streaming: String?,
        val notice: String?,
        val search: Boolean?,
        val sources: String,
    ) : State()

    /** A report that is read and left. */
    data class Report(val title: String, val verdict: Boolean?, val rows: List<Row>) : State()
}

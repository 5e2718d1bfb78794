package org.pocketlm.app

import android.content.Context
import android.text.InputType
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.view.inputmethod.EditorInfo
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.Switch
import android.widget.TextView
import org.pocketlm.core.Message
import org.pocketlm.core.State

/** The conversation. A token changes only the text of the answer that is being written. */
class ChatScreen(private val context: Context, private val actions: Actions) {
    private val title = context.heading("")
    private val list = context.column()
    private val scroll: ScrollView = context.scrolling(list)
    private val notice = context.text("", 14f).apply { accessibilityLiveRegion = View.ACCESSIBILITY_LIVE_REGION_POLITE }
    private val input = EditText(context).apply {
        hint = "Message"
        contentDescription = "Message to the model"
        inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_FLAG_MULTI_LINE or InputType.TYPE_TEXT_FLAG_CAP_SENTENCES
        imeOptions = EditorInfo.IME_ACTION_SEND
        maxLines = 4
        id = INPUT
    }
    private val sources = context.text("", 14f)
    private val search = Switch(context).apply {
        text = "Search"
        minHeight = context.dp(48)
        setOnClickListener { actions.search(isChecked) }
    }
    private val send = context.button("Send", ::onSend)
    private val menu = context.chatMenu(actions).apply { visibility = View.GONE }
    private var shown = listOf<Message>()
    private var answer: TextView? = null
    private var writing = false
    val view: View = layout()

    private fun layout(): View {
        val more = context.button("More") { menu.visibility = if (menu.visibility == View.GONE) View.VISIBLE else View.GONE }
        val bar = LinearLayout(context).apply {
            addView(input, LinearLayout.LayoutParams(0, WRAP_CONTENT, 1f))
            addView(send)
            addView(more.apply { contentDescription = "Certificate, verification and benchmark" })
        }
        return LinearLayout(context).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(context.dp(8), context.dp(8), context.dp(8), context.dp(8))
            addView(title)
            addView(scroll, LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f))
            listOf(sources, notice, search, menu, bar).forEach { addView(it, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT)) }
        }
    }

    private fun onSend() {
        val text = input.text.toString()
        if (writing) {
            actions.stop()
        } else if (text.isNotBlank()) {
            input.setText("")
            menu.visibility = View.GONE
            actions.send(text)
        }
    }

    fun show(state: State.Chatting) {
        title.text = state.title
        notice.text = state.notice.orEmpty()
        sources.text = if (state.sources.isEmpty()) "" else "Sources:\n${state.sources}"
        sources.visibility = if (state.sources.isEmpty()) View.GONE else View.VISIBLE
        search.visibility = if (state.search == null) View.GONE else View.VISIBLE
        search.isChecked = state.search == true
        writing = state.streaming != null
        send.text = if (writing) "Stop" else "Send"
        if (state.messages != shown || (answer != null) != writing) rebuild(state)
        answer?.text = state.streaming
        if (writing) scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
    }

    private fun rebuild(state: State.Chatting) {
        list.removeAllViews()
        state.messages.forEach { add(it.role, it.content) }
        shown = state.messages
        answer = state.streaming?.let { add("assistant", it) }
        scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
    }

    private fun add(role: String, content: String): TextView {
        val name = if (role == "user") "You" else "Model"
        val body = context.text(content)
        list.addView(context.text(name, 14f, bold = true))
        list.addView(body, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT).apply { bottomMargin = context.dp(12) })
        return body
    }

    private companion object {
        const val INPUT = 1 // an id lets Android keep the text that is being typed through a rotation
    }
}

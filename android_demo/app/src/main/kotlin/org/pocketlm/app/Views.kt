package org.pocketlm.app

import android.content.Context
import android.util.TypedValue
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView

/** Small builders for plain views. Sizes of text are in sp, so that large fonts work; colours are the theme's. */

fun Context.dp(value: Int) = TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_DIP, value.toFloat(), resources.displayMetrics).toInt()

fun Context.color(attribute: Int): Int {
    val found = theme.obtainStyledAttributes(intArrayOf(attribute))
    return found.getColor(0, 0).also { found.recycle() }
}

fun Context.column(vararg children: View) = LinearLayout(this).apply {
    orientation = LinearLayout.VERTICAL
    setPadding(dp(16), dp(12), dp(16), dp(12))
    children.forEach { addView(it, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT).apply { bottomMargin = dp(8) }) }
}

fun Context.row(vararg children: View) = LinearLayout(this).apply {
    orientation = LinearLayout.HORIZONTAL
    children.forEach { addView(it, LinearLayout.LayoutParams(0, WRAP_CONTENT, 1f)) }
}

fun Context.text(content: CharSequence, sp: Float = 16f, bold: Boolean = false) = TextView(this).apply {
    text = content
    textSize = sp
    setTextColor(color(android.R.attr.textColorPrimary))
    if (bold) setTypeface(typeface, android.graphics.Typeface.BOLD)
    setTextIsSelectable(true)
}

/** A heading for TalkBack, which jumps between headings. */
fun Context.heading(content: CharSequence) = text(content, 22f, bold = true).apply {
    if (android.os.Build.VERSION.SDK_INT >= android.os.Build.VERSION_CODES.P) isAccessibilityHeading = true
}

fun Context.button(label: String, action: () -> Unit) = Button(this).apply {
    text = label
    isAllCaps = false
    minHeight = dp(48)
    setOnClickListener { action() }
}

fun Context.scrolling(content: View) = ScrollView(this).apply {
    isFillViewport = true
    addView(content)
}

package org.pocketlm.core

/** What a user can do something about: one line that says what is wrong and what to do. */
class InputException(message: String, cause: Throwable? = null) : Exception(message, cause)

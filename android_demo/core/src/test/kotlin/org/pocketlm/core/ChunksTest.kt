package org.pocketlm.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

class ChunksTest {
    private fun sizes(count: Int) = chunks(IntArray(count) { it }, 512).map { it.size }

    @Test
    fun `a long prompt comes in chunks, and no token is left alone`() {
        assertEquals(listOf(1), sizes(1))
        assertEquals(listOf(512), sizes(512))
        assertEquals(listOf(511, 2), sizes(513))
        assertEquals(listOf(512, 511, 2), sizes(1025))
    }

    @Test
    fun `no token is lost`() {
        val tokens = IntArray(1000) { it }
        assertArrayEquals(tokens, chunks(tokens, 37).flatMap { it.asList() }.toIntArray())
    }
}

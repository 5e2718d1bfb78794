/// A model's tokenizer. The app gives one from huggingface/swift-transformers; PocketCore has none of its own.
public protocol TextTokenizer: Sendable {
    /// Token ids of a prompt. Control tokens count in the template's segments; the same strings in a message are
    /// ordinary text.
    ///
    /// - Throws: PocketError if a message spells out a control token that cannot be written as text.
    func encode(_ segments: [Segment]) throws -> [Int]
    /// The text of tokens; control tokens have none.
    func decode(_ tokens: [Int]) -> String
    /// Whether a token can show in decoded text: it exists and is not a control token.
    func hasText(_ token: Int) -> Bool
    /// Whether a token is one raw byte, as tokenizers with byte fallback write what is not in their vocabulary.
    func isByte(_ token: Int) -> Bool
}

/// Decodes tokens as they come; the pieces joined equal ``TextTokenizer/decode(_:)`` of all tokens.
///
/// A piece is held back until no later token can change it: while a character's bytes are incomplete, and through a run
/// of byte tokens. Each token is decoded a bounded number of times. The same as runtimes/tokenizer.py's StreamDecoder.
public struct StreamDecoder {
    private static let incomplete: Unicode.Scalar = "\u{fffd}"
    /// Bytes of UTF-8, and so the most tokens that one character can be spread over.
    private static let longestCharacter = 4

    private let tokenizer: any TextTokenizer
    /// The last token shown: decoders treat the first of a text differently.
    private var anchor: [Int] = []
    private var held: [Int] = []

    public init(_ tokenizer: any TextTokenizer) {
        self.tokenizer = tokenizer
    }

    /// The text that this token completes, perhaps none.
    public mutating func add(_ token: Int) -> String {
        guard tokenizer.hasText(token) else { return "" }
        held.append(token)
        if tokenizer.isByte(token) { return "" }
        if !endsIncomplete([token]) { return flush() }
        // The token ends within a character, or completes one that others began.
        if held.count > Self.longestCharacter || endsIncomplete(held) { return "" }
        return flush()
    }

    /// The text still held back; incomplete bytes show as U+FFFD.
    public mutating func finish() -> String {
        held.isEmpty ? "" : flush()
    }

    private func endsIncomplete(_ tokens: [Int]) -> Bool {
        tokenizer.decode(tokens).unicodeScalars.last == Self.incomplete
    }

    private mutating func flush() -> String {
        let shown = anchor.isEmpty ? "" : tokenizer.decode(anchor)
        let text = tokenizer.decode(anchor + held)
        anchor = held.suffix(1)
        held = []
        return String(String.UnicodeScalarView(text.unicodeScalars.dropFirst(shown.unicodeScalars.count)))
    }
}

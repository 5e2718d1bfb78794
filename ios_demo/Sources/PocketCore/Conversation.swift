/// The prompt of a conversation, cut to what the context holds.
public struct Conversation: Sendable {
    private let turns: ChatTurns
    private let tokenizer: any TextTokenizer
    private let context: Int
    private let maxNewTokens: Int

    public init(turns: ChatTurns, tokenizer: any TextTokenizer, context: Int, maxNewTokens: Int) {
        self.turns = turns
        self.tokenizer = tokenizer
        self.context = context
        self.maxNewTokens = maxNewTokens
    }

    /// The prompt's tokens and the messages it holds: without the oldest turns where all would not fit.
    ///
    /// A quarter of the context is kept for the answer, or as much as was asked for if that is less. Once turns must
    /// go, they go until half of the context is free: the turns that follow then find their beginning in the cache. The
    /// system message stays. The same as Chat.fit of runtimes/chat.py.
    ///
    /// - Throws: PocketError if the last message alone is too long.
    public func fit(_ messages: [Message], today: Day) throws -> (tokens: [Int], kept: [Message]) {
        var room = context - min(maxNewTokens, context / 4)
        var kept = messages
        while true {
            let tokens = try tokenizer.encode(turns.segments(kept, today: today))
            if tokens.count <= room { return (tokens, kept) }
            let first = kept.first?.role == .system ? 1 : 0
            if kept.count - first >= 3 {
                kept.removeSubrange(first..<first + 2)
                room = min(room, context / 2)
            } else if tokens.count <= context {
                return (tokens, kept)
            } else {
                throw PocketError(
                    "the message takes \(tokens.count) tokens and the context holds \(context); "
                        + "shorten it or export with a larger --context")
            }
        }
    }
}

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

    /// What is run for an answer.
    public struct Prompt: Equatable, Sendable {
        public let tokens: [Int]
        /// The messages that the prompt holds, the last as the user wrote it.
        public let kept: [Message]
        /// What a search found and the model is shown.
        public let passages: [Passage]
        /// What the user must know of the search, a line each.
        public let notes: [String]
    }

    /// The prompt for an answer to the last message, with what a search found in the room that the conversation leaves.
    ///
    /// - Parameter found: nil if nothing was looked up.
    /// - Throws: PocketError as ``fit(_:spare:today:)`` does.
    public func prepare(_ messages: [Message], _ found: Found?, today: Day) throws -> Prompt {
        let spare = found?.passages.isEmpty ?? true ? 0 : context / 4
        let (plain, kept) = try fit(messages, spare: spare, today: today)
        guard let found, let question = kept.last?.content else {
            return Prompt(tokens: plain, kept: kept, passages: [], notes: [])
        }
        let left = try room - plain.count - count(grounded("", []))
        var used = try cut(found.passages, to: left, count: count)
        var tokens = plain
        while !used.isEmpty {
            let asked = kept.dropLast() + [Message(.user, grounded(question, used))]
            let withPassages = try tokenizer.encode(turns.segments(Array(asked), today: today))
            if withPassages.count <= room {
                tokens = withPassages
                break
            }
            used.removeLast()  // tokens of parts do not always add up
        }
        return Prompt(tokens: tokens, kept: kept, passages: used, notes: explain(found, used: used))
    }

    private func count(_ text: String) throws -> Int {
        try tokenizer.encode([Segment(text: text, isTemplate: false)]).count
    }

    /// Tokens that a prompt may take: a quarter of the context is kept for the answer, or less if less was asked.
    private var room: Int { context - min(maxNewTokens, context / 4) }

    /// The prompt's tokens and the messages it holds: without the oldest turns where all would not fit.
    ///
    /// A quarter of the context is kept for the answer, or as much as was asked for if that is less, and `spare` tokens
    /// besides. Once turns must go, they go until half of the context is free: the turns that follow then find their
    /// beginning in the cache. The system message stays. The same as Chat.fit of runtimes/chat.py.
    ///
    /// - Throws: PocketError if the last message alone is too long.
    public func fit(
        _ messages: [Message], spare: Int = 0, today: Day
    ) throws -> (tokens: [Int], kept: [Message]) {
        var room = room - spare
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

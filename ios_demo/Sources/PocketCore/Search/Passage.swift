/// A piece of text that a source found.
public struct Passage: Codable, Equatable, Sendable {
    /// Heading or name of the document.
    public let title: String
    public let text: String
    /// Where it is from, for people.
    public let source: String

    public init(title: String, text: String, source: String) {
        self.title = title
        self.text = text
        self.source = source
    }
}

/// Something that finds passages.
public protocol PassageSource: Sendable {
    /// What the user is told of it.
    var name: String { get }

    /// Passages, best first.
    ///
    /// - Throws: PocketError with one line for anything that goes wrong.
    func search(_ words: [String], limit: Int) throws -> [Passage]
}

/// What a search gave: the words that were looked up, passages, and a line for each source that failed.
public struct Found: Equatable, Sendable {
    public let words: [String]
    public let passages: [Passage]
    public let problems: [String]
}

/// Where to look things up, and how many passages the model is shown: small models answer best from one.
public struct Search: Sendable {
    private let sources: [any PassageSource]
    private let limit: Int

    public init(_ sources: [any PassageSource], limit: Int = 1) {
        self.sources = sources
        self.limit = limit
    }

    /// Search for what the last message asks; with the question before if it has only one keyword ("And its height?").
    public func lookUp(_ messages: [Message]) -> Found {
        let questions = messages.filter { $0.role == .user }.suffix(2).map(\.content)
        var words = keywords(questions.last ?? "")
        if words.count < 2, questions.count > 1 {
            words = distinct(words + keywords(questions[0]), by: \.self)
        }
        if words.isEmpty { return Found(words: [], passages: [], problems: []) }
        var problems: [String] = []
        var answers: [[Passage]] = []
        for source in sources {
            do {
                answers.append(try source.search(words, limit: limit))
            } catch {
                problems.append("\(source.name): \(PocketError.line(for: error))")
            }
        }
        let passages = distinct(byTurns(answers), by: \.text)
        return Found(words: words, passages: Array(passages.prefix(limit)), problems: problems)
    }

    private func byTurns(_ answers: [[Passage]]) -> [Passage] {
        (0..<(answers.map(\.count).max() ?? 0)).flatMap { turn in
            answers.compactMap { turn < $0.count ? $0[turn] : nil }
        }
    }
}

/// Each entry once. Texts are the same only to the last scalar: to Swift those are equal that look alike.
func distinct<Entry>(_ entries: [Entry], by text: (Entry) -> String) -> [Entry] {
    var seen = Set<[UInt8]>()
    return entries.filter { seen.insert(Array(text($0).utf8)).inserted }
}

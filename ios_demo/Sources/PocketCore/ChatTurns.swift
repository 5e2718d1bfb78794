import Foundation

/// Who wrote a message.
public enum Role: String, Codable, Sendable {
    case system, user, assistant
}

/// A message of a conversation.
public struct Message: Codable, Equatable, Sendable {
    public let role: Role
    public let content: String

    public init(_ role: Role, _ content: String) {
        self.role = role
        self.content = content
    }
}

/// A part of a prompt. Control tokens count only where the template wrote the text.
public struct Segment: Equatable, Sendable {
    public let text: String
    public let isTemplate: Bool

    public init(text: String, isTemplate: Bool) {
        self.text = text
        self.isTemplate = isTemplate
    }
}

/// A chat template taken apart into literal pieces: chat_turns.json. See runtimes/chat_turns.py for its rules, which
/// an export has proven equal to the template.
///
/// All comparisons are of Unicode scalars, as in Python: to Swift's characters "\r\n" is one, and a letter swallows the
/// accents behind it.
public struct ChatTurns: Decodable, Equatable, Sendable {
    public static let schema = 1

    struct Piece: Decodable, Equatable, Sendable {
        let trimBefore: String
        let text: String
        let trimAfter: String

        enum CodingKeys: String, CodingKey {
            case text
            case trimBefore = "trim_before"
            case trimAfter = "trim_after"
        }
    }

    struct Cut: Decodable, Equatable, Sendable {
        let behind: String
        let trimLeft: String

        enum CodingKeys: String, CodingKey {
            case behind
            case trimLeft = "trim_left"
        }
    }

    let between: [String: Piece]
    let cut: Cut?
    let dates: [String]
    let systemReason: String?
    /// Tokens that count in pieces and are plain text in contents; other added tokens count everywhere.
    public let control: [String]

    enum CodingKeys: String, CodingKey {
        case schema, between, cut, dates, control
        case systemReason = "system_reason"
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        let schema = try container.decode(Int.self, forKey: .schema)
        guard schema == Self.schema else {
            throw PocketError("chat_turns.json has schema \(schema), this app reads \(Self.schema); update the app")
        }
        between = try container.decode([String: Piece].self, forKey: .between)
        cut = try container.decodeIfPresent(Cut.self, forKey: .cut)
        dates = try container.decode([String].self, forKey: .dates)
        control = try container.decodeIfPresent([String].self, forKey: .control) ?? []
        systemReason = try container.decodeIfPresent(String.self, forKey: .systemReason)
    }

    /// The prompt of a conversation `[system] user (assistant user)*`, to be continued by the model.
    ///
    /// - Throws: PocketError for another order of roles, an empty message, or a system message that is not taken.
    public func segments(_ messages: [Message], today: Day) throws -> [Segment] {
        var result: [Segment] = []
        var previous = "start"
        var content = ""
        for (role, following) in try contents(messages) + [("generate", "")] {
            let piece = try piece(behind: previous, before: role)
            if previous != "start" {
                result.append(Segment(text: content.trimmingEnd(of: piece.trimBefore), isTemplate: false))
            }
            result.append(Segment(text: withDates(piece.text, today), isTemplate: true))
            previous = role
            content = following.trimmingStart(of: piece.trimAfter)
        }
        return result
    }

    private func contents(_ messages: [Message]) throws -> [(String, String)] {
        try messages.map { message in
            guard message.content.unicodeScalars.contains(where: { !whiteSpace.contains($0) }) else {
                throw PocketError("a message of the \(message.role.rawValue) is empty; leave it out")
            }
            return (message.role.rawValue, message.role == .assistant ? kept(message.content) : message.content)
        }
    }

    /// An answer without its reasoning, where the template shows earlier answers without it.
    private func kept(_ content: String) -> String {
        guard let cut, let rest = content.behindLast(cut.behind) else { return content }
        return rest.trimmingStart(of: cut.trimLeft)
    }

    private func piece(behind previous: String, before role: String) throws -> Piece {
        if let piece = between["\(previous) \(role)"] { return piece }
        if previous == "start", role == "system" {
            throw PocketError("this model takes no system message: \(systemReason ?? "its template has none")")
        }
        throw PocketError("\(role) cannot follow \(previous): a conversation is [system] user (assistant user)*")
    }

    private func withDates(_ text: String, _ today: Day) -> String {
        let mark = "\u{e000}"
        return dates.reduce(text) { text, pattern in
            text.replacingOccurrences(of: mark + pattern + mark, with: today.formatted(pattern), options: .literal)
        }
    }
}

/// What Python's str.strip removes, and \s of its regular expressions matches.
let whiteSpace = Set(
    ([
        0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F,
        0x3000,
    ]
        + Array(0x2000...0x200A)).compactMap { Unicode.Scalar(UInt32($0)) })

extension String {
    func trimmingStart(of set: String) -> String {
        let removed = Set(set.unicodeScalars)
        return String(String.UnicodeScalarView(unicodeScalars.drop { removed.contains($0) }))
    }

    func trimmingEnd(of set: String) -> String {
        let removed = Set(set.unicodeScalars)
        var scalars = Substring(self).unicodeScalars
        while let last = scalars.last, removed.contains(last) { scalars.removeLast() }
        return String(String.UnicodeScalarView(scalars))
    }

    /// What stands behind the last occurrence of a text, nil if there is none.
    func behindLast(_ text: String) -> String? {
        let scalars = Array(unicodeScalars)
        let wanted = Array(text.unicodeScalars)
        guard !wanted.isEmpty, scalars.count >= wanted.count else { return nil }
        for start in stride(from: scalars.count - wanted.count, through: 0, by: -1)
        where scalars[start..<start + wanted.count].elementsEqual(wanted) {
            return String(String.UnicodeScalarView(scalars[(start + wanted.count)...]))
        }
        return nil
    }
}

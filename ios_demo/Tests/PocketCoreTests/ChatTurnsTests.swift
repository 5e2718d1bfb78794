import XCTest

@testable import PocketCore

final class ChatTurnsTests: XCTestCase {
    private struct Entry: Decodable {
        let name: String
        let turns: ChatTurns
        let conversations: [Conversation]
    }

    private struct Conversation: Decodable {
        let date: String
        let messages: [Message]
        let text: String
    }

    func testConversationsAreRenderedAsTheTemplateDoes() throws {
        let entries = try Fixtures.read([Entry].self, "chat_turns.json")
        XCTAssertGreaterThan(entries.count, 10)
        for entry in entries {
            XCTAssertFalse(entry.conversations.isEmpty, entry.name)
            for conversation in entry.conversations {
                let segments = try entry.turns.segments(conversation.messages, today: day(conversation.date))
                let text = segments.map(\.text).joined()
                // Strings are equal to Swift when they look alike; these must be the same to the last scalar.
                XCTAssertTrue(
                    text.unicodeScalars.elementsEqual(conversation.text.unicodeScalars),
                    "\(entry.name): \(conversation.messages): \(text.debugDescription)")
            }
        }
    }

    private func day(_ text: String) throws -> Day {
        let utc = try XCTUnwrap(TimeZone(identifier: "UTC"))
        return Day(try Date(text + "T12:00:00Z", strategy: .iso8601), in: utc)
    }

    private func turns(cut: String = "null") throws -> ChatTurns {
        let piece = #"{"trim_before":"","text":"|","trim_after":""}"#
        let json = """
            {"schema":1,"between":{"start user":\(piece),"user assistant":\(piece),"assistant user":\(piece),
            "user generate":\(piece)},"default_system":null,"system_reason":"it has none","cut":\(cut),"dates":[]}
            """
        return try JSONDecoder().decode(ChatTurns.self, from: Data(json.utf8))
    }

    func testConversationsThatThePiecesDoNotCoverAreRefused() throws {
        let turns = try turns()
        let today = try day("2025-01-31")
        for (messages, words) in [
            ([Message(.system, "x"), Message(.user, "y")], "takes no system message: it has none"),
            ([Message(.assistant, "x")], "assistant cannot follow start"),
            ([Message(.user, "x"), Message(.assistant, "y")], "generate cannot follow assistant"),
            ([Message(.user, " \u{1c}\u{2003}\n")], "empty"),
            ([], "generate cannot follow start"),
        ] {
            let message = Fixtures.message { _ = try turns.segments(messages, today: today) }
            XCTAssertTrue(message.contains(words), message)
        }
    }

    func testTrimmingLooksAtScalars() throws {
        XCTAssertEqual("a\r\n".trimmingEnd(of: "\n"), "a\r")
        XCTAssertEqual("\n\u{301}b".trimmingStart(of: "\n").unicodeScalars.first, "\u{301}")
        XCTAssertEqual("x</think>\u{301}y</think>z".behindLast("</think>"), "z")
        XCTAssertEqual("x</think>\u{301}".behindLast("</think>"), "\u{301}")
        XCTAssertNil("x</thin".behindLast("</think>"))
    }

    func testDatesAreWrittenAsStrftimeDoes() throws {
        let day = try day("2031-11-05")
        XCTAssertEqual(day.formatted("%d %b %Y, %A %a %B %m %y %%"), "05 Nov 2031, Wednesday Wed November 11 31 %%")
    }

    func testAnotherSchemaIsRefused() {
        let json = Data(#"{"schema":2}"#.utf8)
        XCTAssertTrue(
            Fixtures.message { _ = try JSONDecoder().decode(ChatTurns.self, from: json) }.contains("schema 2"))
    }
}

import XCTest

@testable import PocketCore

final class ConversationTests: XCTestCase {
    private let today = Day(Date(timeIntervalSince1970: 0))

    /// Each piece of the template is one token, each letter of a message another.
    private func conversation(context: Int, most: Int = 1000) throws -> Conversation {
        let piece = #"{"trim_before":"","text":"|","trim_after":""}"#
        let pairs = ["start user", "start system", "system user", "user assistant", "assistant user", "user generate"]
        let between = pairs.map { "\"\($0)\":\(piece)" }.joined(separator: ",")
        let json =
            #"{"schema":1,"between":{\#(between)},"default_system":null,"system_reason":null,"cut":null,"dates":[]}"#
        let turns = try JSONDecoder().decode(ChatTurns.self, from: Data(json.utf8))
        return Conversation(turns: turns, tokenizer: LetterTokenizer(), context: context, maxNewTokens: most)
    }

    private let talk = [
        Message(.system, "a"), Message(.user, "bbbb"), Message(.assistant, "cccc"), Message(.user, "dddd"),
        Message(.assistant, "eeee"), Message(.user, "a"),
    ]

    func testAShortConversationIsKeptWhole() throws {
        let fitted = try conversation(context: 100).fit(talk, today: today)
        XCTAssertEqual(fitted.kept, talk)
        XCTAssertEqual(fitted.tokens.count, 18 + 7)
    }

    func testOldestTurnsGoUntilHalfOfTheContextIsFree() throws {
        // 25 tokens do not fit 30 - 7; without two turns there are 15, which are half of 30.
        let fitted = try conversation(context: 30).fit(talk, today: today)
        XCTAssertEqual(fitted.kept, [talk[0]] + talk[3...])
        XCTAssertEqual(fitted.tokens.count, 15)
        // With few new tokens asked for, all fit.
        XCTAssertEqual(try conversation(context: 30, most: 5).fit(talk, today: today).kept, talk)
    }

    func testOnceTurnsGoTheyGoUntilHalfIsFree() throws {
        // 36 tokens do not fit 30; without two turns there are 24, which would fit, but are more than half of 40.
        let letters = [1, 6, 4, 6, 4, 8].map { String(repeating: "a", count: $0) }
        let roles: [Role] = [.system, .user, .assistant, .user, .assistant, .user]
        let long = zip(roles, letters).map { Message($0, $1) }
        XCTAssertEqual(try conversation(context: 40).fit(long, today: today).kept, [long[0], long[5]])
    }

    func testAMessageThatAloneIsTooLongIsRefused() throws {
        let long = [Message(.user, String(repeating: "a", count: 18))]
        XCTAssertEqual(try conversation(context: 20).fit(long, today: today).tokens.count, 20)
        let message = Fixtures.message { _ = try conversation(context: 19).fit(long, today: today) }
        XCTAssertTrue(message.contains("takes 20 tokens"), message)
    }
}

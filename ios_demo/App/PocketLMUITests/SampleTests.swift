import XCTest

/// The whole app on the small bundle that comes with it: a real Core ML package with random weights.
final class SampleTests: XCTestCase {
    private static let patience: TimeInterval = 120

    /// By identifier alone: whether a field that grows is a text field or a text view depends on the system's version.
    @MainActor
    private func element(_ app: XCUIApplication, _ identifier: String) -> XCUIElement {
        app.descendants(matching: .any)[identifier].firstMatch
    }

    @MainActor
    private func openSample() throws -> XCUIApplication {
        continueAfterFailure = false
        let app = XCUIApplication()
        app.launchArguments = ["--sample"]
        app.launch()
        XCTAssertTrue(element(app, "message").waitForExistence(timeout: Self.patience), app.debugDescription)
        return app
    }

    @MainActor
    func testItChats() throws {
        let app = try openSample()
        element(app, "message").tap()
        element(app, "message").typeText("What is the capital of France?")
        app.buttons["send"].tap()
        let answer = element(app, "answer")
        XCTAssertTrue(answer.waitForExistence(timeout: Self.patience), app.debugDescription)
        XCTAssertFalse(element(app, "problem").exists)
    }

    @MainActor
    func testItVerifies() throws {
        let app = try openSample()
        app.tabBars.buttons["This iPhone"].tap()
        app.buttons["verify"].tap()
        let verdict = element(app, "verification")
        XCTAssertTrue(verdict.waitForExistence(timeout: Self.patience), app.debugDescription)
        XCTAssertTrue(verdict.label.hasPrefix("Passed"), verdict.label)
    }

    @MainActor
    func testItGoesBackToTheBundles() throws {
        let app = try openSample()
        app.buttons["close"].firstMatch.tap()
        XCTAssertTrue(app.buttons["open-Sample-coreml"].waitForExistence(timeout: Self.patience), app.debugDescription)
    }
}

// What the UI tests use of XCUIAutomation, as developer.apple.com documents it; elsewhere XCTest comes without it.
import Foundation

@MainActor public class XCUIElement {
    public enum ElementType: UInt { case any }
    public var exists: Bool { fatalError() }
    public var firstMatch: XCUIElement { fatalError() }
    public var label: String { fatalError() }
    public var debugDescription: String { fatalError() }
    public var buttons: XCUIElementQuery { fatalError() }
    public var tabBars: XCUIElementQuery { fatalError() }
    public func descendants(matching type: ElementType) -> XCUIElementQuery { fatalError() }
    public func waitForExistence(timeout: TimeInterval) -> Bool { fatalError() }
    public func tap() {}
    public func typeText(_ text: String) {}
    init() {}
}

@MainActor public class XCUIElementQuery {
    public var firstMatch: XCUIElement { fatalError() }
    public var buttons: XCUIElementQuery { fatalError() }
    public subscript(key: String) -> XCUIElement { fatalError() }
    init() {}
}

@MainActor public class XCUIApplication: XCUIElement {
    override public init() {}
    public var launchArguments: [String] = []
    public func launch() {}
}

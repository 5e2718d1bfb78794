import Foundation

/// Something that a person can understand and act on: one line that says what is wrong and what to do.
public struct PocketError: Error, LocalizedError, Equatable, Sendable {
    public let message: String

    public init(_ message: String) {
        self.message = message
    }

    public var errorDescription: String? { message }

    /// The one line to show for any error.
    public static func line(for error: any Error) -> String {
        if let own = error as? PocketError { return own.message }
        return error.localizedDescription.split(whereSeparator: \.isNewline).joined(separator: " ")
    }
}

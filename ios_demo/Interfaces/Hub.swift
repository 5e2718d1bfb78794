// What the app uses of huggingface/swift-transformers' module Hub, version 1.3.3.
import Foundation

public struct BinaryDistinctString: Hashable, Sendable, ExpressibleByStringLiteral {
    public init(_ text: String) {}
    public init(stringLiteral value: String) {}
}

@dynamicMemberLookup
public struct Config: Hashable, Sendable {
    public init(_ value: BinaryDistinctString) {}
    public init(_ value: String) {}
    public init(_ value: Bool) {}
    public init(_ value: [Config]) {}
    public init(_ value: [BinaryDistinctString: Config]) {}
    public init(_ dictionary: [String: Config]) {}
    public func string() -> String? { fatalError() }
    public func string(or: String) -> String { fatalError() }
    public func integer() -> Int? { fatalError() }
    public func boolean(or: Bool) -> Bool { fatalError() }
    public func array(or: [Config]) -> [Config] { fatalError() }
    public func dictionary(or: [BinaryDistinctString: Config]) -> [BinaryDistinctString: Config] { fatalError() }
    public subscript(index: BinaryDistinctString) -> Config { fatalError() }
    public subscript(index: Int) -> Config { fatalError() }
    public subscript(dynamicMember member: String) -> Config? { fatalError() }
    public subscript(dynamicMember member: String) -> Config { fatalError() }
}

public struct HubApi: Sendable {
    public static let shared = HubApi()
    public func configuration(fileURL: URL) throws -> Config { fatalError() }
}

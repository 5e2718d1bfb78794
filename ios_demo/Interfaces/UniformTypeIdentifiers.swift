// What the app uses of Uniform Type Identifiers, as developer.apple.com documents it.
public struct UTType: Sendable { public static var folder: UTType { fatalError() } }

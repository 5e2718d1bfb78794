// What this package uses of ExecuTorch's Swift API (extension/apple/ExecuTorch/Exported of its repository, v1.4.1).
import Foundation

public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result { try body() }

public enum ModuleLoadMode: Int { case file, mmap, mmapUseMlock, mmapUseMlockIgnoreErrors }
public class Value {}
public protocol ValueConvertible { func asValue() -> Value }
public protocol ValueSequenceConstructible { static func from(_ values: [Value]) throws -> Self }
public protocol Scalar {}
extension Int64: Scalar {}
extension Float: Scalar {}
extension Int: ValueSequenceConstructible { public static func from(_ values: [Value]) throws -> Int { fatalError() } }
extension Array: ValueSequenceConstructible where Element == Value {
    public static func from(_ values: [Value]) throws -> [Value] { values }
}

public final class Tensor<T: Scalar>: ValueConvertible, ValueSequenceConstructible {
    public convenience init(
        _ scalars: inout [T], shape: [Int] = [], strides: [Int] = [], dimensionOrder: [Int] = []
    ) { fatalError() }
    public convenience init(_ scalars: [T], shape: [Int] = [], strides: [Int] = [], dimensionOrder: [Int] = []) {
        fatalError()
    }
    init() {}
    public func scalars() -> [T] { fatalError() }
    public func asValue() -> Value { fatalError() }
    public static func from(_ values: [Value]) throws -> Tensor<T> { fatalError() }
}

public class Module {
    public init(filePath: String, loadMode: ModuleLoadMode) {}
    public func load(_ method: String) throws {}
    public func execute(_ method: String, _ inputs: ValueConvertible...) throws -> [Value] { fatalError() }
    public func execute<Output: ValueSequenceConstructible>(_ method: String) throws -> Output { fatalError() }
    public func forward(_ inputs: ValueConvertible...) throws -> [Value] { fatalError() }
    public func forward<Output: ValueSequenceConstructible>(_ inputs: ValueConvertible...) throws -> Output {
        fatalError()
    }
    public func forward<Output: ValueSequenceConstructible>(_ input: ValueConvertible) throws -> Output { fatalError() }
}

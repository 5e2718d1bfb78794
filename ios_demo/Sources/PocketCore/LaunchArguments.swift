/// What the app is asked to do when it is started by a program: `pocketlm device`, a UI test, or Xcode's scheme.
///
///     --bundle NAME     open this bundle of the Documents folder
///     --target NAME     coreml or executorch; without it the first that the bundle holds
///     --prompt TEXT     ask this
///     --verify          replay golden.json
///     --benchmark       time the model
///     --prompt-tokens N, --new-tokens N, --runs N      of the benchmark
///     --sustained N     and go on for so many seconds
///     --output FILE     write the results there, in the Documents folder, as JSON
///     --sample          import the small bundle that comes with the app, and open it if --bundle names no other
public struct LaunchArguments: Equatable, Sendable {
    public var bundle: String?
    public var target: Target?
    public var prompt: String?
    public var verifies = false
    public var benchmarks = false
    public var promptTokens: Int?
    public var newTokens: Int?
    public var runs: Int?
    public var sustainedSeconds = 0
    public var output: String?
    public var usesSample = false

    public init() {}

    /// Whether a program waits for results.
    public var isAutomated: Bool { verifies || benchmarks || prompt != nil }

    /// The benchmark that is asked for: what is not told is as usual, or shorter where the context holds less.
    public func plan(context: Int) -> BenchmarkPlan {
        var plan = BenchmarkPlan.fitting(context, sustainedSeconds: Double(sustainedSeconds))
        plan.promptTokens = promptTokens ?? plan.promptTokens
        plan.newTokens = newTokens ?? plan.newTokens
        plan.runs = runs ?? plan.runs
        return plan
    }

    /// - Parameter arguments: without the program's name. What is not known is left alone: the system adds its own.
    /// - Throws: PocketError for a known argument without its value, or with one that cannot be used.
    public init(_ arguments: [String]) throws {
        var rest = arguments[...]
        func value(of name: String) throws -> String {
            guard let value = rest.popFirst() else { throw PocketError("\(name) needs a value") }
            return value
        }
        while let argument = rest.popFirst() {
            switch argument {
            case "--bundle": bundle = try value(of: argument)
            case "--target": target = try Self.target(value(of: argument))
            case "--prompt": prompt = try value(of: argument)
            case "--output": output = try Self.fileName(value(of: argument))
            case "--prompt-tokens": promptTokens = try Self.number(value(of: argument), from: 1, argument)
            case "--new-tokens": newTokens = try Self.number(value(of: argument), from: 1, argument)
            case "--runs": runs = try Self.number(value(of: argument), from: 1, argument)
            case "--sustained": sustainedSeconds = try Self.number(value(of: argument), from: 0, argument)
            case "--verify": verifies = true
            case "--benchmark": benchmarks = true
            case "--sample": usesSample = true
            default: continue
            }
        }
    }

    private static func target(_ name: String) throws -> Target {
        guard let target = Target(rawValue: name), target != .onnx else {
            throw PocketError("--target is coreml or executorch, not \(name)")
        }
        return target
    }

    private static func number(_ text: String, from least: Int, _ name: String) throws -> Int {
        guard let number = Int(text), number >= least, number <= 1_000_000 else {
            throw PocketError("\(name) is a whole number from \(least) to 1000000, not \(text)")
        }
        return number
    }

    private static func fileName(_ name: String) throws -> String {
        guard !name.isEmpty, !name.contains("/"), !name.hasPrefix(".") else {
            throw PocketError("--output is the name of a file in the Documents folder, not \(name)")
        }
        return name
    }
}

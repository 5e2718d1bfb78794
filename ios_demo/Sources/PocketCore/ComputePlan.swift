/// Where a runtime says it would run each operation of a function.
public struct ComputePlan: Codable, Equatable, Sendable {
    public enum Device: String, Codable, CaseIterable, Sendable {
        case cpu, gpu
        case neuralEngine = "neural_engine"
    }

    /// One operation of a function, as a runtime plans it.
    public struct Operation: Equatable, Sendable {
        public let name: String
        public let device: Device
        /// Share of the function's time, as the runtime estimates it; 0 where it says nothing.
        public let cost: Double

        public init(name: String, device: Device, cost: Double) {
            self.name = name
            self.device = device
            self.cost = cost
        }
    }

    public let function: String
    /// Operations by the device that is preferred for them.
    public let operations: [String: Int]
    /// Estimated shares of the time by device; they sum to 1, or are empty where nothing was estimated.
    public let cost: [String: Double]
    /// Kinds of operations that do not run on the Neural Engine, the costliest first.
    public let offNeuralEngine: [String]

    enum CodingKeys: String, CodingKey {
        case function, operations, cost
        case offNeuralEngine = "off_neural_engine"
    }

    public init(function: String, operations all: [Operation]) {
        let total = all.reduce(0) { $0 + $1.cost }
        self.function = function
        self.operations = Dictionary(all.map { ($0.device.rawValue, 1) }, uniquingKeysWith: +)
        cost = total > 0 ? Dictionary(all.map { ($0.device.rawValue, $0.cost / total) }, uniquingKeysWith: +) : [:]
        let elsewhere = Dictionary(
            all.filter { $0.device != .neuralEngine }.map { ($0.name, $0.cost) }, uniquingKeysWith: +)
        offNeuralEngine = elsewhere.sorted { ($1.value, $0.key) < ($0.value, $1.key) }.map(\.key)
    }

    /// For people: "decode: 612 operations on the Neural Engine, 3 on the CPU".
    public var summary: String {
        let words: [(Device, String)] = [(.neuralEngine, "the Neural Engine"), (.gpu, "the GPU"), (.cpu, "the CPU")]
        let counts = words.compactMap { device, name in operations[device.rawValue].map { "\($0) on \(name)" } }
        return "\(function): operations \(counts.joined(separator: ", "))"
    }
}

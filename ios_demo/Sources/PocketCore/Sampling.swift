import Foundation

/// How the next token is chosen, with the names and meanings of transformers' GenerationConfig.
public struct Sampling: Codable, Equatable, Sendable {
    /// Divides the logits; 0 takes the most likely token, the lowest id among equals.
    public var temperature: Double
    /// Keeps the most likely tokens and those tied with the last of them; 0 keeps all.
    public var topK: Int
    /// Keeps the most likely tokens up to and including the one that reaches this probability.
    public var topP: Double
    /// Keeps tokens at least this many times as likely as the most likely one.
    public var minP: Double
    /// Divides positive and multiplies negative logits of tokens that occurred, prompt included.
    public var repetitionPenalty: Double
    /// Of the random numbers.
    public var seed: UInt64

    enum CodingKeys: String, CodingKey {
        case temperature, seed
        case topK = "top_k"
        case topP = "top_p"
        case minP = "min_p"
        case repetitionPenalty = "repetition_penalty"
    }

    public init(
        temperature: Double = 0, topK: Int = 0, topP: Double = 1, minP: Double = 0, repetitionPenalty: Double = 1,
        seed: UInt64 = 0
    ) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
        self.seed = seed
    }

    /// - Throws: PocketError for a value outside its range.
    public func check() throws {
        try require(temperature >= 0 && temperature.isFinite, "temperature must be a number of at least 0")
        try require(topK >= 0, "top_k must be at least 0 (0 keeps all tokens)")
        try require(topP > 0 && topP <= 1, "top_p must be above 0 and at most 1")
        try require(minP >= 0 && minP <= 1, "min_p must be between 0 and 1")
        try require(repetitionPenalty > 0 && repetitionPenalty.isFinite, "repetition_penalty must be above 0")
    }

    private func require(_ holds: Bool, _ rule: String) throws {
        if !holds { throw PocketError(rule) }
    }
}

/// Endless random numbers in [0, 1), multiples of 2**-53: equal seeds give equal numbers in every language.
///
/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as in runtimes/sampling.py.
public struct UniformNumbers: Sendable {
    private var state: UInt64

    public init(seed: UInt64) {
        state = seed
    }

    public mutating func next() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = (state ^ (state >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return Double((mixed ^ (mixed >> 31)) >> 11) * 0x1p-53
    }
}

/// Chooses tokens by the rules of runtimes/sampling.py, in the same order and in double precision.
public struct Sampler: Sendable {
    /// Sorting a whole vocabulary takes as long as a small model takes for a token; its head is mostly enough.
    private static let head = 1024

    public let sampling: Sampling
    private var random: UniformNumbers

    public init(_ sampling: Sampling) throws {
        try sampling.check()
        self.sampling = sampling
        random = UniformNumbers(seed: sampling.seed)
    }

    /// The next token.
    ///
    /// - Parameter history: all tokens so far.
    /// - Throws: PocketError if the logits are not numbers.
    public mutating func next(_ logits: [Float], history: [Int]) throws -> Int {
        let scores = try penalised(logits, history)
        if sampling.temperature == 0 { return indexOfLargest(scores) }
        let (ids, weights) = candidates(scores.map { $0 / sampling.temperature })
        let drawn = random.next()
        let (order, cumulative) = descending(weights, mass: drawn)
        let wanted = drawn * weights.reduce(0, +)
        let chosen = cumulative.firstIndex { $0 > wanted } ?? order.count - 1
        return ids[order[chosen]]
    }

    /// Logits in double precision with the repetition penalty (Keskar et al. 2019, CTRL).
    private func penalised(_ logits: [Float], _ history: [Int]) throws -> [Double] {
        var scores = logits.map(Double.init)
        // -inf alone is fine: it marks a token that must not come.
        guard !scores.contains(where: \.isNaN), let largest = scores.max(), largest.isFinite else {
            throw PocketError("the model returned logits that are not finite numbers; verify the bundle")
        }
        if sampling.repetitionPenalty != 1 {
            for token in Set(history) where token < scores.count {
                let penalty = sampling.repetitionPenalty
                scores[token] = scores[token] < 0 ? scores[token] * penalty : scores[token] / penalty
            }
        }
        return scores
    }

    /// Tokens that may come, and their weights relative to the most likely one; in transformers' order of filters.
    private func candidates(_ scores: [Double]) -> (ids: [Int], weights: [Double]) {
        var ids = Array(scores.indices)
        let largest = scores.max() ?? 0
        if sampling.topK > 0, sampling.topK < ids.count {
            let least = largestValue(scores, rank: sampling.topK)
            ids = ids.filter { scores[$0] >= least }
        }
        var weights = ids.map { exp(scores[$0] - largest) }
        if sampling.topP < 1 {
            let (order, cumulative) = descending(weights, mass: sampling.topP)
            let limit = sampling.topP * weights.reduce(0, +)
            let kept = order.indices.filter { $0 == 0 || cumulative[$0 - 1] < limit }.map { order[$0] }.sorted()
            (ids, weights) = (kept.map { ids[$0] }, kept.map { weights[$0] })
        }
        let likely = weights.indices.filter { weights[$0] >= sampling.minP }
        return (likely.map { ids[$0] }, likely.map { weights[$0] })
    }

    /// Positions of the largest weights, largest first and the lower position first among equals, and their running
    /// sum; enough of them to exceed ``mass`` of the total, or all.
    private func descending(_ weights: [Double], mass: Double) -> (order: [Int], cumulative: [Double]) {
        var positions = Array(weights.indices)
        if weights.count > Self.head {
            let least = largestValue(weights, rank: Self.head)
            let head = positions.filter { weights[$0] >= least }
            if head.reduce(0, { $0 + weights[$1] }) > mass * weights.reduce(0, +) { positions = head }
        }
        let order = positions.sorted { weights[$0] != weights[$1] ? weights[$0] > weights[$1] : $0 < $1 }
        var sum = 0.0
        let cumulative = order.map { position in
            sum += weights[position]
            return sum
        }
        return (order, cumulative)
    }
}

/// The position of the largest value, the first among equals.
func indexOfLargest(_ values: [Double]) -> Int {
    var best = 0
    for index in values.indices where values[index] > values[best] { best = index }
    return best
}

/// The value that would stand at ``rank`` (from 1) if the values were sorted downwards. Quickselect (Hoare 1961).
func largestValue(_ values: [Double], rank: Int) -> Double {
    var values = values
    var low = 0
    var high = values.count - 1
    let wanted = rank - 1
    while low < high {
        let pivot = values[low + (high - low) / 2]
        var left = low
        var right = high
        while left <= right {
            while values[left] > pivot { left += 1 }
            while values[right] < pivot { right -= 1 }
            if left <= right {
                values.swapAt(left, right)
                left += 1
                right -= 1
            }
        }
        if wanted <= right { high = right } else if wanted >= left { low = left } else { return values[wanted] }
    }
    return values[wanted]
}

import XCTest

@testable import PocketCore

final class ReportTests: XCTestCase {
    private static let reading = Reading(thermalStatus: "nominal", isLowPowerMode: false)

    private func read() -> Reading { Self.reading }

    func testABenchmarkRunsWhatItCounts() throws {
        let model = ScriptedModel { _ in peak(1) }
        var shares: [Double] = []
        let plan = BenchmarkPlan(promptTokens: 4, newTokens: 3, runs: 2)
        let series = try benchmark(model, plan, read: read) { shares.append($0) }
        XCTAssertEqual(series.runs.count, 2)
        XCTAssertEqual(series.sustained, [])
        XCTAssertEqual(model.calls, [-1, 4, 1, 1, 1, -1, 4, 1, 1, 1, -1, 4, 1, 1, 1])
        XCTAssertEqual(shares, shares.sorted())
        XCTAssertEqual(shares.last, 1)
        let long = BenchmarkPlan(promptTokens: 60, newTokens: 5)
        XCTAssertTrue(Fixtures.message { _ = try benchmark(model, long, read: read) }.contains("do not fit"))
        XCTAssertEqual(BenchmarkPlan.fitting(2048), BenchmarkPlan())
        XCTAssertEqual(BenchmarkPlan.fitting(64).promptTokens + BenchmarkPlan.fitting(64).newTokens, 48)
    }

    func testASustainedRunGoesOnUntilItsTimeIsOver() throws {
        let model = ScriptedModel { _ in peak(1) }
        let plan = BenchmarkPlan(promptTokens: 4, newTokens: 3, runs: 1, sustainedSeconds: 0.05)
        let windows = try benchmark(model, plan, read: read).sustained
        XCTAssertGreaterThanOrEqual(try XCTUnwrap(windows.last).atSeconds, 0.05)
        XCTAssertEqual(windows.map(\.atSeconds), windows.map(\.atSeconds).sorted())
    }

    /// The keys that the Android app writes and `pocketlm device` reads.
    func testTheReportsJSON() throws {
        let series = BenchmarkSeries(
            runs: [1.0, 3, 2].map {
                BenchmarkRun(
                    prefillTokensPerSecond: $0, decodeTokensPerSecond: 10 * $0, timeToFirstTokenSeconds: 1 / $0)
            },
            sustained: [BenchmarkWindow(atSeconds: 1, decodeTokensPerSecond: 2, reading: Self.reading)],
            before: Self.reading, after: Self.reading)
        let load = LoadTimes(compileSeconds: nil, firstSeconds: 2)
        let measured = BenchmarkReport(series, load: load, laterLoadSeconds: 1, peakMemoryBytes: 3, runtime: "Core ML")
        var report = Report(
            device: DeviceDescription(model: "iPhone16,2", system: "iOS 18.1", cores: 6, memoryBytes: 8))
        try report.name(BundleFolder(Fixtures.golden.appending(path: "bundle/good")))
        report.add(
            Verification(
                passed: false, kl: nil, toleranceKL: 0.1, top1: 1, positions: 8, klOfSequences: [nil, 2], seconds: 1),
            .coreml)
        report.add(measured, BenchmarkPlan(), .coreml)
        let json = try JSONDecoder().decode(JSONValue.self, from: report.json())
        XCTAssertEqual(json["schema_version"], .number(1))
        XCTAssertEqual(json["kind"], .string("device"))
        XCTAssertEqual(json["device"]["platform"], .string("ios"))
        XCTAssertEqual(json["bundle"]["name"], .string("tiny"))
        let hash = try sha256(of: Fixtures.golden.appending(path: "bundle/good/pocketlm.json"))
        XCTAssertEqual(json["bundle"]["manifest_sha256"], .string(hash))
        XCTAssertEqual(json["verify"]["coreml"]["tolerance_kl"], .number(0.1))
        XCTAssertEqual(json["verify"]["coreml"]["kl"], .null)
        XCTAssertEqual(json["bench"]["prompt_tokens"], .number(256))
        let target = json["bench"]["targets"]["coreml"]
        XCTAssertEqual(target["decode_tokens_per_second"], .number(20))
        XCTAssertEqual(target["later_load_seconds"], .number(1))
        XCTAssertEqual(target["before"]["thermal_status"], .string("nominal"))
        XCTAssertEqual(try JSONDecoder().decode(Report.self, from: report.json()), report)
    }

    func testAnAnswerWithoutAnEndIsNotReported() {
        XCTAssertNil(AnswerReport([Piece(token: 1, text: "a", end: nil)]))
        XCTAssertNil(AnswerReport([]))
    }

    func testAComputePlanIsSummedUp() {
        let plan = ComputePlan(
            function: "decode",
            operations: [
                .init(name: "linear", device: .neuralEngine, cost: 0.5), .init(name: "gather", device: .cpu, cost: 0.1),
                .init(name: "linear", device: .gpu, cost: 0.4),
            ])
        XCTAssertEqual(plan.operations, ["neural_engine": 1, "cpu": 1, "gpu": 1])
        XCTAssertEqual(plan.cost["gpu"] ?? 0, 0.4, accuracy: 1e-12)
        XCTAssertEqual(plan.offNeuralEngine, ["linear", "gather"])
        XCTAssertEqual(plan.summary, "decode: operations 1 on the Neural Engine, 1 on the GPU, 1 on the CPU")
    }
}

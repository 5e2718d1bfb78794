import XCTest

@testable import PocketCore

final class SmallTests: XCTestCase {
    func testEveryHalfIsTheFloatThatPythonMakesOfIt() {
        // Exact by construction: sign, exponent and fraction, written out in another way than the code's.
        for bits in UInt16.min...UInt16.max {
            let sign: Double = bits & 0x8000 == 0 ? 1 : -1
            let exponent = Int(bits >> 10 & 31)
            let fraction = Double(bits & 1023) / 1024
            let found = Double(float(half: bits))
            if exponent == 31 {
                if fraction == 0 { XCTAssertEqual(found, sign * .infinity) } else { XCTAssertTrue(found.isNaN) }
            } else {
                let scale = pow(2.0, Double(max(exponent, 1) - 15))
                XCTAssertEqual(found, sign * scale * (fraction + (exponent == 0 ? 0 : 1)))
                XCTAssertEqual(found.sign, bits & 0x8000 == 0 ? .plus : .minus)
            }
        }
    }

    func testLaunchArguments() throws {
        let given = try LaunchArguments([
            "-AppleLanguages", "(en)", "--bundle", "smol", "--target", "coreml", "--verify", "--prompt", "--benchmark",
            "--sustained", "30", "--output", "result.json",
        ])
        XCTAssertEqual(given.bundle, "smol")
        XCTAssertEqual(given.target, .coreml)
        XCTAssertEqual(given.prompt, "--benchmark")  // a value may look like an option
        XCTAssertTrue(given.verifies && !given.benchmarks && given.isAutomated)
        XCTAssertFalse(try LaunchArguments([]).isAutomated)
        let plan = try LaunchArguments(["--runs", "2", "--new-tokens", "8", "--sustained", "9"]).plan(context: 64)
        XCTAssertEqual(plan, BenchmarkPlan(promptTokens: 32, newTokens: 8, runs: 2, sustainedSeconds: 9))
        for bad in [
            ["--bundle"], ["--target", "onnx"], ["--output", "../x"], ["--output", ".x"], ["--sustained", "-1"],
            ["--runs", "0"],
        ] {
            XCTAssertFalse(Fixtures.message { _ = try LaunchArguments(bad) }.isEmpty)
        }
    }

    func testNumbers() {
        XCTAssertEqual(scientific(0.0000669252), "6.69e-05")
        XCTAssertEqual(scientific(0.0047), "0.0047")
        XCTAssertEqual(megabytes(1_234_567_890), "1235 MB")
        XCTAssertEqual(median([3, 1, 2]), 2)
        XCTAssertEqual(median([4, 1, 2, 3]), 2.5)
        XCTAssertEqual(Duration.milliseconds(1500).seconds, 1.5)
    }

    func testErrorsAreOneLine() {
        XCTAssertEqual(PocketError.line(for: PocketError("a")), "a")
        struct Long: LocalizedError { var errorDescription: String? { "a\nb\r\nc" } }
        XCTAssertEqual(PocketError.line(for: Long()), "a b c")
    }
}

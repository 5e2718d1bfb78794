// What the app uses of SwiftUI, as developer.apple.com documents it: enough to check the app's types and isolation.
@_exported import Foundation
@_exported import Observation
@_exported import UIKit
import UniformTypeIdentifiers

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder @MainActor @preconcurrency var body: Body { get }
}
extension Never: View { public var body: Never { return fatalError() } }

public protocol PrimitiveView: View where Body == Never {}
extension PrimitiveView { public var body: Never { return fatalError() } }
extension Optional: View where Wrapped: View { public var body: Never { return fatalError() } }

public struct EmptyView: PrimitiveView { public init() {} }
public struct Either<A: View, B: View>: PrimitiveView {}
public struct Group<each C: View>: PrimitiveView {}

@resultBuilder public struct ViewBuilder {
    public static func buildBlock<each C: View>(_ content: repeat each C) -> Group<repeat each C> { fatalError() }
    public static func buildIf<C: View>(_ content: C?) -> C? { content }
    public static func buildEither<A: View, B: View>(first: A) -> Either<A, B> { fatalError() }
    public static func buildEither<A: View, B: View>(second: B) -> Either<A, B> { fatalError() }
}

@MainActor @preconcurrency public protocol Scene {}
@resultBuilder public struct SceneBuilder { public static func buildBlock<S: Scene>(_ scene: S) -> S { scene } }
public struct WindowGroup<Content: View>: Scene { public init(@ViewBuilder content: () -> Content) {} }
@MainActor @preconcurrency public protocol App {
    associatedtype Body: Scene
    @SceneBuilder @MainActor @preconcurrency var body: Body { get }
    @MainActor @preconcurrency init()
}
extension App { @MainActor public static func main() {} }

@propertyWrapper public struct Binding<Value> {
    public init(get: @escaping () -> Value, set: @escaping (Value) -> Void) {}
    public var wrappedValue: Value {
        get { fatalError() }
        nonmutating set {}
    }
}
@propertyWrapper public struct State<Value> {
    public init(wrappedValue: Value) {}
    public var wrappedValue: Value {
        get { fatalError() }
        nonmutating set {}
    }
    public var projectedValue: Binding<Value> { fatalError() }
}

@propertyWrapper @dynamicMemberLookup public struct Bindable<Value> {
    public var wrappedValue: Value
    public init(wrappedValue: Value) { self.wrappedValue = wrappedValue }
    public var projectedValue: Bindable<Value> { self }
    public subscript<Subject>(dynamicMember path: ReferenceWritableKeyPath<Value, Subject>) -> Binding<Subject> {
        fatalError()
    }
}
public enum ScenePhase: Comparable, Sendable { case background, inactive, active }
public struct EnvironmentValues { public var scenePhase: ScenePhase { fatalError() } }
@propertyWrapper public struct Environment<Value> {
    public init(_ path: KeyPath<EnvironmentValues, Value>) {}
    public var wrappedValue: Value { fatalError() }
}
public struct ScrollDismissesKeyboardMode { public static var interactively: Self { fatalError() } }

public struct Text: PrimitiveView {
    public init<S: StringProtocol>(_ content: S) {}
}
public struct Label: PrimitiveView {
    public init<S: StringProtocol>(_ title: S, systemImage: String) {}
}
public struct Button<L: View>: PrimitiveView {}
extension Button where L == Label {
    public init<S: StringProtocol>(_ title: S, systemImage: String, action: @escaping @MainActor () -> Void) {}
}
extension Button where L == Text {
    public init<S: StringProtocol>(_ title: S, action: @escaping @MainActor () -> Void) {}
}
public struct List<Content: View>: PrimitiveView { public init(@ViewBuilder content: () -> Content) {} }
public struct Section<Content: View, Footer: View>: PrimitiveView {}
extension Section where Footer == EmptyView {
    public init<S: StringProtocol>(_ title: S, @ViewBuilder content: () -> Content) {}
}
extension Section {
    public init(@ViewBuilder content: () -> Content, @ViewBuilder footer: () -> Footer) {}
}
public struct ForEach<Data: RandomAccessCollection, ID: Hashable, Content: View>: PrimitiveView {
    public init(_ data: Data, id: KeyPath<Data.Element, ID>, @ViewBuilder content: @escaping (Data.Element) -> Content)
    {}
}
extension ForEach where ID == Data.Element.ID, Data.Element: Identifiable {
    public init(_ data: Data, @ViewBuilder content: @escaping (Data.Element) -> Content) {}
}
public struct LabeledContent<Content: View>: PrimitiveView {
    public init<S: StringProtocol>(_ title: S, @ViewBuilder content: () -> Content) {}
}
extension LabeledContent where Content == Text {
    public init<S1: StringProtocol, S2: StringProtocol>(_ title: S1, value: S2) {}
}
public struct ProgressView<L: View>: PrimitiveView {
    public init<V: BinaryFloatingPoint>(value: V?, total: V = 1, @ViewBuilder label: () -> L) {}
}
public struct TextField: PrimitiveView {
    public init<S: StringProtocol>(_ title: S, text: Binding<String>, axis: Axis) {}
}
public struct Toggle<L: View>: PrimitiveView {}
extension Toggle where L == Text {
    public init<S: StringProtocol>(_ title: S, isOn: Binding<Bool>) {}
}
public enum Axis { case horizontal, vertical }
public struct ShareLink: PrimitiveView {
    public init<S: StringProtocol>(_ title: S, item: String) {}
}
public enum HorizontalAlignment { case leading, center, trailing }
public enum VerticalAlignment { case top, center, bottom }
public struct VStack<C: View>: PrimitiveView {
    public init(alignment: HorizontalAlignment = .center, spacing: Double? = nil, @ViewBuilder content: () -> C) {}
}
public struct LazyVStack<C: View>: PrimitiveView {
    public init(alignment: HorizontalAlignment = .center, spacing: Double? = nil, @ViewBuilder content: () -> C) {}
}
public struct HStack<C: View>: PrimitiveView {
    public init(alignment: VerticalAlignment = .center, spacing: Double? = nil, @ViewBuilder content: () -> C) {}
}
public struct ScrollView<C: View>: PrimitiveView { public init(@ViewBuilder content: () -> C) {} }
public struct NavigationStack<C: View>: PrimitiveView { public init(@ViewBuilder root: () -> C) {} }

@MainActor @preconcurrency public protocol TabContent {}
public struct Tab<C: View>: TabContent {
    nonisolated public init<S: StringProtocol>(_ title: S, systemImage: String, @ViewBuilder content: () -> C) {}
}
public struct TabGroup<each T: TabContent>: TabContent {}
@resultBuilder public struct TabContentBuilder {
    public static func buildBlock<each T: TabContent>(_ tabs: repeat each T) -> TabGroup<repeat each T> { fatalError() }
}
public struct TabView<T: TabContent>: PrimitiveView { public init(@TabContentBuilder content: () -> T) {} }

@MainActor @preconcurrency public protocol ToolbarContent {}
public enum ToolbarItemPlacement { case topBarLeading, topBarTrailing }
public struct ToolbarItem<C: View>: ToolbarContent {
    public init(placement: ToolbarItemPlacement, @ViewBuilder content: () -> C) {}
}
@resultBuilder public struct ToolbarContentBuilder {
    public static func buildBlock<T: ToolbarContent>(_ item: T) -> T { item }
}

public protocol ShapeStyle {}
public struct Color: PrimitiveView, ShapeStyle {
    public static var accentColor: Color { fatalError() }
    public static var secondary: Color { fatalError() }
    public func opacity(_ opacity: Double) -> Color { self }
}
public struct AnyStyle: ShapeStyle {}
extension ShapeStyle where Self == AnyStyle { public static var secondary: AnyStyle { fatalError() } }
extension ShapeStyle where Self == Color { public static var red: Color { fatalError() } }
public protocol Shape {}
public struct RoundedRectangle: Shape {}
extension Shape where Self == RoundedRectangle {
    public static func rect(cornerRadius: Double) -> Self { fatalError() }
}
public protocol PrimitiveButtonStyle {}
public struct BorderedButtonStyle: PrimitiveButtonStyle {}
extension PrimitiveButtonStyle where Self == BorderedButtonStyle { public static var bordered: Self { fatalError() } }
public protocol TextFieldStyle {}
public struct RoundedBorderTextFieldStyle: TextFieldStyle {}
extension TextFieldStyle where Self == RoundedBorderTextFieldStyle {
    public static var roundedBorder: Self { fatalError() }
}
public protocol LabelStyle {}
public struct IconOnlyLabelStyle: LabelStyle {}
extension LabelStyle where Self == IconOnlyLabelStyle { public static var iconOnly: Self { fatalError() } }
public protocol TextSelectability {}
public struct EnabledTextSelectability: TextSelectability {}
extension TextSelectability where Self == EnabledTextSelectability { public static var enabled: Self { fatalError() } }
public struct Font: Sendable {
    public static let headline = Font(), subheadline = Font(), footnote = Font(), caption = Font()
}
public enum TextAlignment { case leading, center, trailing }
public struct UnitPoint { public static var bottom: UnitPoint { fatalError() } }
public struct AccessibilityChildBehavior {
    public static var contain: Self { fatalError() }
    public static var combine: Self { fatalError() }
}
public enum TitleDisplayMode { case automatic, inline, large }
public enum ImageScale { case small, medium, large }

extension View {
    public func task(@_inheritActorContext _ action: @escaping @Sendable () async -> Void) -> some View { self }
    public func padding() -> some View { self }
    public func padding(_ length: Double) -> some View { self }
    public func font(_ font: Font?) -> some View { self }
    public func foregroundStyle<S: ShapeStyle>(_ style: S) -> some View { self }
    public func background<S: ShapeStyle, T: Shape>(_ style: S, in shape: T) -> some View { self }
    public func navigationTitle<S: StringProtocol>(_ title: S) -> some View { self }
    public func navigationBarTitleDisplayMode(_ mode: TitleDisplayMode) -> some View { self }
    public func refreshable(action: @escaping @Sendable () async -> Void) -> some View { self }
    public func fileImporter(
        isPresented: Binding<Bool>, allowedContentTypes: [UTType],
        onCompletion: @escaping (Result<URL, any Error>) -> Void
    ) -> some View { self }
    public func toolbar<C: ToolbarContent>(@ToolbarContentBuilder content: () -> C) -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func buttonStyle<S: PrimitiveButtonStyle>(_ style: S) -> some View { self }
    public func textFieldStyle<S: TextFieldStyle>(_ style: S) -> some View { self }
    public func labelStyle<S: LabelStyle>(_ style: S) -> some View { self }
    public func imageScale(_ scale: ImageScale) -> some View { self }
    public func lineLimit(_ limit: ClosedRange<Int>) -> some View { self }
    public func multilineTextAlignment(_ alignment: TextAlignment) -> some View { self }
    public func monospacedDigit() -> some View { self }
    public func textSelection<S: TextSelectability>(_ selectability: S) -> some View { self }
    public func defaultScrollAnchor(_ anchor: UnitPoint?) -> some View { self }
    public func scrollDismissesKeyboard(_ mode: ScrollDismissesKeyboardMode) -> some View { self }
    public func onChange<V: Equatable>(
        of value: V, initial: Bool = false, _ action: @escaping () -> Void
    ) -> some View { self }
    public func accessibilityIdentifier(_ identifier: String) -> some View { self }
    public func accessibilityLabel<S: StringProtocol>(_ label: S) -> some View { self }
    public func accessibilityElement(children: AccessibilityChildBehavior) -> some View { self }
}
